"""``etcd-actions runs``: the runs, newest first."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import msgspec
import trio
from flyteidl2.common.list_pb2 import Filter, Sort
from flyteidl2.workflow import run_service_pb2 as pb

from etcd_actions._internal.quoting import quoted
from etcd_actions.cli.backends import open_reader
from etcd_actions.cli.exit_codes import ExitCode, print_message
from etcd_actions.cli.following import follow
from etcd_actions.cli.formats.message_rows import RunRow, phase_of, run_row
from etcd_actions.cli.formats.rows import ActionRow, stored_row
from etcd_actions.cli.formats.standard_output import (
    Write,
    chosen_format,
    print_rows,
    standard_output,
    until_stopped,
)
from etcd_actions.cli.names import Name
from etcd_actions.cli.options import CommonOptions
from etcd_actions.cli.reader import Reader
from etcd_actions.cli.signals import open_stop
from etcd_actions.cli.stored_objects import open_stored_objects
from etcd_actions.config.settings import SERVICE
from etcd_actions.errors import ConfigError, NotFound
from etcd_actions.model import ROOT_ACTION, Phase

if TYPE_CHECKING:
    from etcd_actions.cli.formats.run_table import RunTable

_PAGE = 1_000
_COUNTED_AT_ONCE = 8
SORT_KEYS: Mapping[str, str] = {
    "created": "created_at",
    "started": "started_at",
    "ended": "ended_at",
    "updated": "updated_at",
    "duration": "duration_ms",
    "phase": "phase",
    "run": "name",
    "project": "project",
    "domain": "domain",
    "task": "task_name",
    "by": "created_by",
}
"""The fields by which runs can be sorted, each with its name in Flyte's messages."""


@dataclass(frozen=True, kw_only=True)
class RunFilter:
    """Selects the runs that match all fields; an empty field matches all.

    Attributes:
        labels: Labels with their values; the value ``None`` matches any.
        newer_than: The maximum of the seconds since the creation of a run.
        older_than: The minimum of these seconds.
    """

    phases: Sequence[str] = ()
    project: str | None = None
    domain: str | None = None
    labels: Mapping[str, str | None] = field(default_factory=dict)
    newer_than: float | None = None
    older_than: float | None = None

    def add_to(self, filters: object, now: datetime) -> None:
        """Add it to the filters of a request."""
        add = filters.add  # type: ignore[attr-defined]
        if self.phases:
            add(function=Filter.VALUE_IN, field="phase", values=self.phases)
        for name in ("project", "domain"):
            if (value := getattr(self, name)) is not None:
                add(function=Filter.EQUAL, field=name, values=[value])
        for key, value in self.labels.items():
            if value is None:
                add(function=Filter.EXISTS, field=f"labels.{key}")
            else:
                add(function=Filter.EQUAL, field=f"labels.{key}", values=[value])
        for seconds, function in (
            (self.newer_than, Filter.GREATER_THAN_OR_EQUAL),
            (self.older_than, Filter.LESS_THAN_OR_EQUAL),
        ):
            if seconds is not None:
                moment = now - timedelta(seconds=seconds)
                add(function=function, field="created_at", values=[moment.isoformat()])

    def matches(self, row: RunRow, now: datetime) -> bool:
        """Whether a run matches, by its row."""
        created = datetime.fromisoformat(row.created_at) if row.created_at else now
        age = (now - created).total_seconds()
        return (
            (not self.phases or row.phase in self.phases)
            and self.project in (None, row.project)
            and self.domain in (None, row.domain)
            and all(
                key in row.labels and value in (None, row.labels[key])
                for key, value in self.labels.items()
            )
            and (self.newer_than is None or age <= self.newer_than)
            and (self.older_than is None or age >= self.older_than)
        )


class RunList(msgspec.Struct, frozen=True):
    """The output as one document."""

    runs: list[RunRow]


async def show_runs(
    common: CommonOptions,
    selected: RunFilter,
    *,
    sort_by: str = "-created",
    limit: int | None = None,
    counts: bool = True,
    watch: bool = False,
    output: str | None = None,
) -> int:
    """Print runs; with ``watch`` then print each changed or new run, until a signal."""
    form = chosen_format(output, elsewhere="jsonl")
    if watch and form in ("json", "yaml"):
        raise ConfigError(f"--output {form} is one document: with --watch give jsonl")
    request = pb.ListRunsRequest(org="")
    request.request.sort_by_fields.append(sort_key(sort_by))
    selected.add_to(request.request.filters, datetime.now(UTC))
    async with open_reader(common) as reader:
        rows, is_all = await _listed(reader, request, limit)
        if not rows and common.config[SERVICE] is None and not await _has_records(reader):
            rows = await _without_records(common, selected, limit)
        if counts:
            rows = await count_actions(reader, rows)
        with standard_output() as write:
            printed = _Printer(form, write, watch)
            printed.print(rows)
            if not rows and form in ("table", "wide"):
                print_message("no such runs: those without a record are shown by list")
            if watch:
                oldest = "" if is_all else min((row.created_at for row in rows), default="")
                await _follow(reader, selected, printed, oldest)
    return ExitCode.OK


def sort_key(text: str) -> Sort:
    """Parse ``FIELD`` or ``-FIELD``, which is descending.

    Raises:
        ConfigError: There is no such field.
    """
    name = text.removeprefix("-")
    if name not in SORT_KEYS:
        raise ConfigError(
            f"--sort-by {quoted(text)}: give one of {', '.join(SORT_KEYS)}, with - before it for "
            "descending"
        )
    direction = Sort.DESCENDING if text.startswith("-") else Sort.ASCENDING
    return Sort(key=SORT_KEYS[name], direction=direction)


class _Printer:
    def __init__(self, form: str, write: Write, follow: bool) -> None:
        self._form = form
        self._write = write
        self._follow = follow
        self._printed: dict[str, RunRow] = {}
        self._table: RunTable | None = None

    def print(self, rows: Sequence[RunRow]) -> None:
        print_rows(self._form, rows, RunList(list(rows)), lambda _: self._lines(rows), self._write)
        self._printed |= {row.path: _without_counts(row) for row in rows}

    def print_changed(self, rows: Sequence[RunRow]) -> None:
        changed = [row for row in rows if self._printed.get(row.path) != row]
        if changed:
            self.print(changed)

    def _lines(self, rows: Sequence[RunRow]) -> bytes:
        if self._table is None:
            from etcd_actions.cli.formats.run_table import RunTable  # noqa: PLC0415 (rich is slow)

            self._table = RunTable(sys.stdout, wide=self._form == "wide", follow=self._follow)
        return self._table.format(rows)


async def _listed(
    reader: Reader, request: pb.ListRunsRequest, limit: int | None
) -> tuple[list[RunRow], bool]:
    """The rows of a request, up to a limit, and whether these are all."""
    rows: list[RunRow] = []
    while True:
        rest = _PAGE if limit is None else min(_PAGE, limit - len(rows))
        request.request.limit = rest
        response = await reader.runs(request)
        rows += map(run_row, response.runs)
        if not response.token:
            return rows, True
        if limit is not None and len(rows) >= limit:
            return rows, False
        request.request.token = response.token


async def _has_records(reader: Reader) -> bool:
    """Whether any run has a record."""
    request = pb.ListRunsRequest(org="")
    request.request.limit = 1
    return bool((await reader.runs(request)).runs)


async def _without_records(
    common: CommonOptions, selected: RunFilter, limit: int | None
) -> list[RunRow]:
    """The runs of an etcd on which no process has written records, by their roots, newest first."""
    now = datetime.now(UTC)
    rows: list[RunRow] = []
    async with open_stored_objects(common) as stored, stored.pages(Name()) as pages:
        async for page in pages:
            for root in (stored_row(stored.prefix, kv) for kv in page.kvs):
                if isinstance(root, ActionRow) and root.action == ROOT_ACTION:
                    row = _run_of(root)
                    if selected.matches(row, now):
                        rows.append(row)
    if rows:
        print_message(
            "no run has a record, which etcd-actions run writes: these are the stored roots"
        )
    rows.sort(key=lambda row: row.created_at, reverse=True)
    return rows[:limit]


def _run_of(root: ActionRow) -> RunRow:
    return RunRow(
        project=root.project,
        domain=root.domain,
        run=root.run or "",
        phase=root.phase or Phase.QUEUED.name,
        created_at=root.created_at,
        ended_at=root.ended_at,
        task=root.short_name,
        attempts=root.attempts or 1,
    )


async def count_actions(reader: Reader, rows: Sequence[RunRow]) -> list[RunRow]:
    """The rows with the numbers of actions; rows of runs whose objects have expired stay as is."""
    counted = list(rows)
    limiter = trio.CapacityLimiter(_COUNTED_AT_ONCE)

    async def count(index: int) -> None:
        row = rows[index]
        done = total = 0
        async with limiter:
            try:
                async for page in reader.actions(Name(row.project, row.domain, row.run)):
                    total += len(page)
                    done += sum(phase_of(each.status.phase).is_terminal for each in page)
            except NotFound:
                return
        if total:
            counted[index] = msgspec.structs.replace(row, done=done, actions=total)

    async with trio.open_nursery() as nursery:
        for index in range(len(rows)):
            nursery.start_soon(count, index)
    return counted


async def _follow(reader: Reader, selected: RunFilter, printed: _Printer, oldest: str) -> None:
    """Print the runs that change or are new, until a signal or the end of the output's reader."""

    def on_item(response: pb.WatchRunsResponse) -> bool:
        now = datetime.now(UTC)
        rows = [
            row
            for row in map(run_row, response.runs)
            if row.created_at >= oldest and selected.matches(row, now)
        ]
        printed.print_changed(rows)
        return False

    request = pb.WatchRunsRequest(org="")
    async with open_stop() as stop, until_stopped(stop):
        await follow("runs", lambda: reader.watch_runs(request), on_item)


def _without_counts(row: RunRow) -> RunRow:
    return msgspec.structs.replace(row, done=None, actions=None)
