"""The output of ``top`` for a program."""

from __future__ import annotations

import msgspec

from etcd_actions.cli.formats.message_rows import RunRow


class Frame(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What ``top`` shows at one moment.

    Attributes:
        runs: The number of runs by phase.
        active: The newest runs that are not terminal.
        cluster: Facts by their names, such as ``leader``.
        rates: Changes a second by their names.
        note: Why a part is missing; empty if none is.
    """

    at: str
    runs: dict[str, int]
    active: list[RunRow]
    cluster: dict[str, str]
    rates: dict[str, float] = {}
    note: str = ""
