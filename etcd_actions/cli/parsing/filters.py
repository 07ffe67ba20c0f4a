"""The flags that select runs or actions."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import click

from etcd_actions.cli.choice_type import Choice
from etcd_actions.model import Phase


def phase_option(what: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command the flag ``--phase``, as ``phases``; ``what`` is what it selects."""
    return click.option(
        "--phase",
        "phases",
        multiple=True,
        type=Choice([phase.name for phase in Phase if phase], case_sensitive=False),
        help=f"Only {what} in this phase; may be given several times.",
    )


def label_option(text: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command the flag, as ``labels``, with a text of help."""
    return click.option("-l", "--label", "labels", multiple=True, metavar="KEY[=VALUE]", help=text)


def parse_labels(texts: Iterable[str]) -> dict[str, str | None]:
    """The labels by key; None for a key without a value.

    Raises:
        click.BadParameter: One has no key.
    """
    labels: dict[str, str | None] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not key:
            raise click.BadParameter("give KEY or KEY=VALUE", param_hint="--label")
        labels[key] = value if equals else None
    return labels
