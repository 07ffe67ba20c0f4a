"""Starts trio for a command."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar, TypeVarTuple

from etcd_actions.cli.process_setup import resume_garbage_collection

T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")


def run_async(
    function: Callable[[*Arguments], Awaitable[T]],
    *arguments: *Arguments,
) -> T:
    """Run an asynchronous function, and return its result."""
    # Its import is a third of the cost of the shortest command.
    import trio  # noqa: PLC0415

    resume_garbage_collection()
    return trio.run(function, *arguments)
