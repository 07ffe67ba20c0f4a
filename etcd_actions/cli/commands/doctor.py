"""``etcd-actions doctor``: the defects of an etcd, and the remedies."""

from __future__ import annotations

import sys
import textwrap
from collections import Counter
from collections.abc import Sequence

import msgspec

from etcd_actions._internal.quoting import printable
from etcd_actions.cli.exit_codes import ExitCode, print_message
from etcd_actions.cli.formats.standard_output import chosen_format, print_rows
from etcd_actions.cli.formats.table import Cell, Line, Terminal
from etcd_actions.cli.options import CommonOptions
from etcd_actions.cli.signals import open_stop
from etcd_actions.doctor import Finding, Severity, Subject, examine, worst

_STYLES = {
    Severity.OK: "green",
    Severity.NOTE: "cyan",
    Severity.WARNING: "yellow",
    Severity.ERROR: "bold red",
}
_INDENT = 9
_LEAST_WIDTH = 40
_EXIT_CODES = {Severity.WARNING: ExitCode.WARNINGS, Severity.ERROR: ExitCode.ERRORS}


class Report(msgspec.Struct, frozen=True):
    """The ``json`` output: the worst severity, and the findings."""

    worst: str
    findings: list[Finding]


async def examine_etcd(common: CommonOptions, output: str | None) -> int:
    """Examine the etcd of the settings, and print the findings, the worst first.

    Returns:
        The exit code of the worst finding.
    """
    form = chosen_format(output, elsewhere="jsonl")
    findings: list[Finding] | None = None
    async with open_stop() as stop:
        with stop.interrupts():
            findings = await examine(
                Subject(
                    settings=common.config.connection(common.endpoints_to_use),
                    prefix=common.prefix,
                    namespace=common.namespace,
                    template=common.config.namespace_template,
                )
            )
        if findings is None:
            print_message("interrupted: there is no result")
            return ExitCode.OK
        report = Report(worst(findings).label, findings)
        print_rows(form, findings, report, lambda _: _table(report.findings))
        return exit_code(findings)


def exit_code(findings: Sequence[Finding]) -> ExitCode:
    """The exit code of the worst finding."""
    return _EXIT_CODES.get(worst(findings), ExitCode.OK)


def _table(findings: Sequence[Finding]) -> bytes:
    terminal = Terminal(sys.stdout)
    width = max(_LEAST_WIDTH, terminal.width)
    lines: list[Line] = []
    for finding in findings:
        style = _STYLES[finding.rank]
        title = [Cell(f"{finding.severity:<{_INDENT}}", style), Cell(finding.id, "bold")]
        if finding.subject:
            title.append(Cell(f"  {printable(finding.subject)}"))
        lines.append(title)
        lines += _wrapped(finding.seen, width)
        lines += _wrapped(finding.meaning, width, style="dim")
        lines += _wrapped(finding.remedy, width, mark="> ")
    counts = Counter(finding.rank for finding in findings)
    shown = [f"{counts[rank]} {rank.label}" for rank in sorted(Severity, reverse=True)]
    lines.append([Cell(", ".join(shown))])
    return terminal.render(lines)


def _wrapped(text: str, width: int, *, mark: str = "", style: str = "") -> list[Line]:
    """The text below its title, broken between words only: commands are copied."""
    indent = " " * _INDENT
    wrapped = textwrap.wrap(
        printable(text),
        width,
        initial_indent=indent + mark,
        subsequent_indent=indent + " " * len(mark),
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [[Cell(line, style)] for line in wrapped]
