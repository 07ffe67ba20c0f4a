"""``etcd-actions config show``: each setting, its value, and where that comes from."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from rich.cells import cell_len

from etcd_actions._internal.quoting import printable
from etcd_actions.cli.exit_codes import ExitCode, say
from etcd_actions.cli.formats.standard_output import chosen_format, standard_output
from etcd_actions.config import SETTINGS, Config, Resolution, Setting
from etcd_actions.config.security import needs_password, unused_password
from etcd_actions.config.settings import KEEPALIVE_TIME, USER
from etcd_actions.errors import ConfigError
from etcd_actions.etcd.connection_settings import LEAST_KEEPALIVE_TIME


class ConfigRow(msgspec.Struct, kw_only=True):
    """One setting. ``value`` is None where there is none, and where it is unusable."""

    name: str
    value: str | None
    source: str
    flag: str
    variable: str
    note: str = ""


def show_config(values: Resolution, output: str | None) -> int:
    """Write the settings to standard output, and what is unusable to stderr."""
    errors = list(values.errors)
    if not errors:
        try:
            Config(values, None)
        except ConfigError as error:
            errors.append(error)
    rows = [_row(setting, values) for setting in SETTINGS]
    with standard_output() as write:
        match chosen_format(output, elsewhere="jsonl"):
            case "table":
                write(_table(rows).encode())
            case "json":
                write(msgspec.json.format(msgspec.json.encode(rows)) + b"\n")
            case _:
                write(msgspec.json.Encoder().encode_lines(rows))
    for each in errors:
        say(str(each))
    return ExitCode.USAGE if errors else ExitCode.OK


def _row(setting: Setting[object], values: Resolution) -> ConfigRow:
    found = values.get(setting)
    value = None if found is None or found.shown is None else printable(found.shown)
    note = ""
    if found is not None and found.given is not None:
        if setting is KEEPALIVE_TIME and values[KEEPALIVE_TIME].value < LEAST_KEEPALIVE_TIME:
            note = f"raised from {value}, which etcd would refuse as too often"
            value = f"{LEAST_KEEPALIVE_TIME:g}s"
        elif setting is USER and needs_password(values):
            note = "the password is asked for on a terminal"
        elif found is unused_password(values):
            note = "not used: the other way to give the password goes before it"
    return ConfigRow(
        name=setting.name,
        value=value,
        source="unusable" if found is None else printable(found.source),
        flag=setting.flag,
        variable=setting.variable,
        note=note,
    )


def _table(rows: Sequence[ConfigRow]) -> str:
    lines = [("FLAG", "VALUE", "FROM", "VARIABLE", "NOTE")]
    lines += [
        (row.flag, _value(row, setting), row.source, row.variable, row.note)
        for row, setting in zip(rows, SETTINGS, strict=True)
    ]
    widths = [max(map(cell_len, column)) for column in zip(*lines, strict=True)]
    padded = (
        "  ".join(
            text + " " * (width - cell_len(text)) for text, width in zip(line, widths, strict=True)
        )
        for line in lines
    )
    return "".join(f"{line.rstrip()}\n" for line in padded)


def _value(row: ConfigRow, setting: Setting[object]) -> str:
    if row.value is not None:
        return row.value
    return "-" if row.source == "unusable" else f"({setting.otherwise})"
