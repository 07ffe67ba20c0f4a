"""Which etcds the conformance suite runs on, and the table of what came out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from etcd_actions.errors import ConfigError
from etcd_actions.testing import EtcdBinary
from etcd_actions.testing.choice import EtcdSource, choose, is_endpoint
from etcd_actions.testing.container import EtcdImage
from etcd_actions.testing.etcd_process import binaries_on_path, packaged_binary
from etcd_actions.testing.plugin import requested_etcd

BINARIES = "ETCD_ACTIONS_TEST_BINARIES"
"""Names more directories with an etcd in them, or etcd programs, as PATH does."""


@dataclass(frozen=True)
class ConformanceEtcd:
    """One column of the table, for each transport.

    ``source`` is what to start it from, or the endpoint of one that runs.
    """

    label: str
    source: EtcdSource | str

    @property
    def where(self) -> str:
        """For people."""
        return self.source if isinstance(self.source, str) else self.source.where


MEMORY = ConformanceEtcd("memory", "this process")
"""The column of the transport that needs no etcd."""


def etcds_at_hand(config: pytest.Config) -> list[ConformanceEtcd]:
    """What ``--etcd`` names; without it every version on this machine, and a container."""
    wanted = requested_etcd(config)
    if is_endpoint(wanted):
        return [ConformanceEtcd(wanted, wanted)]
    if wanted:
        return [_of(choose(wanted))]
    packaged = packaged_binary()
    binaries = [*binaries_on_path(), *_more_binaries(), *([packaged] if packaged else [])]
    by_version = {binary.version: binary for binary in reversed(binaries)}
    return [*map(_of, sorted(by_version.values(), key=_version)), _of(EtcdImage.default())]


def _version(binary: EtcdBinary) -> tuple[int, int, int]:
    return binary.version


def _of(source: EtcdSource) -> ConformanceEtcd:
    label = str(source.version) if isinstance(source, EtcdBinary) else "container"
    return ConformanceEtcd(label, source)


def _more_binaries() -> list[EtcdBinary]:
    found = []
    for entry in filter(None, os.environ.get(BINARIES, "").split(os.pathsep)):
        path = Path(entry) / "etcd" if Path(entry).is_dir() else Path(entry)
        if not path.is_file():
            raise ConfigError(f"{BINARIES}: there is no etcd at {entry}")
        found.append(EtcdBinary.of(path.absolute()))
    return found


# Its key in what a process of pytest-xdist leaves behind.
_COLLECTED = "conformance"


@dataclass
class _Cell:
    text: str = ""
    reason: str = ""


class ConformanceTable:
    """A plugin: rows are the tests marked ``conformance``, columns are transport and etcd.

    A test counts by the parameters ``conformance_etcd``, and ``conformance_transport`` or
    ``transport``, that it has.
    """

    def __init__(self) -> None:
        self._cells: dict[str, tuple[str, tuple[str, str]]] = {}
        self._results: dict[str, _Cell] = {}
        self._where: dict[str, str] = {}
        self._versions: dict[str, str] = {}
        self._deselected: list[str] = []

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items: Sequence[pytest.Item]) -> None:
        """Note each case's row and column."""
        for item in items:
            if isinstance(item, pytest.Function) and item.get_closest_marker("conformance"):
                self._cells[item.nodeid] = self._place(item)

    def pytest_deselected(self, items: Sequence[pytest.Item]) -> None:
        """Note what was not meant to run."""
        self._deselected += [item.nodeid for item in items]

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """In a process of pytest-xdist: tell the one that prints what was collected."""
        output: dict[str, object] | None = getattr(session.config, "workeroutput", None)
        if output is not None:
            cells = [(node, row, *column) for node, (row, column) in self._cells.items()]
            output[_COLLECTED] = (cells, self._where, self._deselected)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Learn what a process of pytest-xdist collected: each collects everything."""
        collected = getattr(node, "workeroutput", {}).get(_COLLECTED)
        if collected is not None:
            cells, self._where, self._deselected = collected
            self._cells = {each: (row, (transport, label)) for each, row, transport, label in cells}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note a result: the worst of a case's phases counts."""
        for name, version in report.user_properties:
            if name == "etcd-version":
                self._versions[report.nodeid] = str(version)
        cell = self._results.setdefault(report.nodeid, _Cell())
        if report.failed:
            cell.text = "FAIL" if report.when == "call" else "ERROR"
        elif report.skipped and cell.text not in {"FAIL", "ERROR"}:
            cell.text, cell.reason = "skip", _reason(report)
        elif report.when == "call" and not cell.text:
            cell.text = "ok"

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print the table, if any of it was run."""
        if self._results.keys() & self._cells.keys():
            terminalreporter.section("conformance")
            for line in self._lines():
                terminalreporter.write_line(line)

    def _place(self, item: pytest.Function) -> tuple[str, tuple[str, str]]:
        name = getattr(item, "originalname", item.name)
        transport, label = "any", "none"
        if (spec := getattr(item, "callspec", None)) is not None:
            etcd = spec.params.get("conformance_etcd")
            given = spec.params.get("transport", transport)
            transport = str(spec.params.get("conformance_transport", given))
            label = etcd.label if isinstance(etcd, ConformanceEtcd) else label
            if isinstance(etcd, ConformanceEtcd):
                self._where.setdefault(label, etcd.where)
            rest = [part for part in spec.id.split("-") if part not in {transport, label}]
            name += f"[{'-'.join(rest)}]" if rest else ""
        return name, (transport, label)

    def _lines(self) -> list[str]:
        by_place: dict[tuple[str, tuple[str, str]], _Cell] = {}
        results = dict.fromkeys(self._deselected, _Cell("-", "deselected")) | self._results
        versions: dict[str, str] = {}
        for node, place in self._cells.items():
            by_place[place] = results.get(node, _Cell("?", "not run: the session ended"))
            if node in self._versions:
                versions[place[1][1]] = self._versions[node]
        rows = list(dict.fromkeys(row for row, _ in by_place))
        columns = list(dict.fromkeys(column for _, column in by_place))
        transports = list(dict.fromkeys(transport for transport, _ in columns))
        columns.sort(key=lambda column: transports.index(column[0]))
        reasons: dict[str, str] = {}
        table = [["transport", *(transport for transport, _ in columns)]]
        table.append(["etcd", *(label for _, label in columns)])
        for row in rows:
            line = [row]
            for column in columns:
                cell = by_place.get((row, column), _Cell(".", "not a case of this test"))
                mark = cell.text
                if cell.text == "skip":
                    mark = reasons.setdefault(cell.reason, f"skip{len(reasons) + 1}")
                elif cell.reason:
                    reasons[cell.reason] = mark
                line.append(mark)
            table.append(line)
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [
            "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
            for line in table
        ]
        lines.append("")
        for label, where in self._where.items():
            lines.append(f"{label}: {where}, {versions.get(label, 'not started')}")
        lines += [f"{mark}: {reason}" for reason, mark in reasons.items()]
        counts = [cell.text for cell in by_place.values()]
        holes = len(rows) * len(columns) - len(by_place)
        tally = {text: counts.count(text) for text in dict.fromkeys(counts)}
        lines.append(
            f"{len(rows)} tests x {len(columns)} columns: "
            + ", ".join(f"{count} {text}" for text, count in tally.items())
            + (f", {holes} no case" if holes else "")
        )
        return lines


def _reason(report: pytest.TestReport) -> str:
    if hasattr(report, "wasxfail"):
        return f"expected to fail: {report.wasxfail}"
    said = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    reason = said.removeprefix("Skipped").removeprefix(": ")
    return reason or "no reason: pytest-trio drops that of an async test, skip in a fixture"
