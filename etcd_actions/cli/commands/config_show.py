"""``etcd-actions config show``: each setting, its value, and the source of the value."""

from __future__ import annotations

import msgspec

from etcd_actions._internal.quoting import printable
from etcd_actions.cli.exit_codes import ExitCode, print_message
from etcd_actions.cli.formats.standard_output import chosen_format, print_rows
from etcd_actions.config import SETTINGS, Config, Resolution, Setting
from etcd_actions.config.security import needs_password, unused_password
from etcd_actions.config.settings import KEEPALIVE_TIME, USER
from etcd_actions.errors import ConfigError
from etcd_actions.etcd.connection_settings import LEAST_KEEPALIVE_TIME


class ConfigRow(msgspec.Struct, kw_only=True):
    """One setting; ``value`` is None without one, and if it is unusable."""

    name: str
    value: str | None
    source: str
    flag: str
    variable: str
    note: str = ""


def show_config(values: Resolution, output: str | None) -> int:
    """Print the settings to standard output, and the errors to standard error."""
    form = chosen_format(output, elsewhere="jsonl")
    errors = list(values.errors)
    if not errors:
        try:
            Config(values, None)
        except ConfigError as error:
            errors.append(error)
    rows = [_row(setting, values) for setting in SETTINGS]
    print_rows(form, rows, rows, lambda _: _table(rows))
    for each in errors:
        print_message(str(each))
    return ExitCode.USAGE if errors else ExitCode.OK


def _row(setting: Setting[object], values: Resolution) -> ConfigRow:
    found = values.get(setting)
    value = None if found is None or found.shown is None else printable(found.shown)
    note = ""
    if found is not None and found.given is not None:
        if setting is KEEPALIVE_TIME and values[KEEPALIVE_TIME].value < LEAST_KEEPALIVE_TIME:
            note = f"raised from {value}, which etcd would reject as too often"
            value = f"{LEAST_KEEPALIVE_TIME:g}s"
        elif setting is USER and needs_password(values):
            note = "the terminal prompts for the password"
        elif found is unused_password(values):
            note = "not used: the other way to give the password overrides it"
    return ConfigRow(
        name=setting.name,
        value=value,
        source="unusable" if found is None else printable(found.source),
        flag=setting.flag,
        variable=setting.variable,
        note=note,
    )


def _table(rows: list[ConfigRow]) -> bytes:
    from etcd_actions.cli.formats.table import aligned  # noqa: PLC0415 (rich is slow to import)

    lines = [("FLAG", "VALUE", "FROM", "VARIABLE", "NOTE")]
    for row, setting in zip(rows, SETTINGS, strict=True):
        otherwise = "-" if row.source == "unusable" else f"({setting.otherwise})"
        value = otherwise if row.value is None else row.value
        lines.append((row.flag, value, row.source, row.variable, row.note))
    return "".join(f"{line}\n" for line in aligned(lines)).encode()
