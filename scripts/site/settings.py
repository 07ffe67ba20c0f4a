"""The tables of settings in docs/configuration.md, made of the settings themselves."""

from __future__ import annotations

import re
from itertools import groupby

from etcd_actions.config import SETTINGS, Setting

# The tables are below this heading, after its text and before the next heading of its level.
_SECTION = re.compile(r"(?<=\n)(## All settings\n.*?)(?=\n### )\n(.*?)(?=\n## )", re.DOTALL)


def tables() -> str:
    """A heading and a table for each group, in the order of the settings."""
    parts = []
    for group, settings in groupby(SETTINGS, key=lambda each: each.group):
        rows = [
            f"### {group}\n",
            "| flag | variable | default | meaning |",
            "| --- | --- | --- | --- |",
            *map(_row, settings),
            "\n",
        ]
        parts.append("\n".join(rows))
    return "".join(parts)


def with_tables(page: str) -> str:
    """The page, with the tables of these settings in place of those that it has."""
    made, count = _SECTION.subn(lambda found: f"{found[1]}\n{tables()}".rstrip("\n") + "\n", page)
    if count != 1:
        raise ValueError("configuration.md has no section 'All settings' with headings below it")
    return made


def _row(setting: Setting[object]) -> str:
    default = setting.otherwise if setting.default is None else f"`{setting.default}`"
    cells = (f"`{setting.flag}`", f"`{setting.variable}`", default, setting.help)
    return f"| {' | '.join(cells)} |"
