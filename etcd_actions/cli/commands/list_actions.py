"""``etcd-actions list``: the existing actions, at one revision."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace

from etcd_actions.cli.exit_codes import ExitCode, print_message
from etcd_actions.cli.formats.row_formats import Document, Format, formatter
from etcd_actions.cli.formats.rows import ActionRow, Row, UndecodableRow, stored_row
from etcd_actions.cli.formats.standard_output import (
    Write,
    chosen_format,
    standard_output,
)
from etcd_actions.cli.names import Name, find_run, nearest_to_unknown, parse_name
from etcd_actions.cli.options import CommonOptions
from etcd_actions.cli.stored_objects import StoredObjects, open_stored_objects
from etcd_actions.codecs import codec_of
from etcd_actions.errors import ConfigError, DecodeError
from etcd_actions.etcd.api import KeyValue, RangeResult
from etcd_actions.model import Phase, Summary, parse_key


@dataclass(frozen=True, kw_only=True)
class Filter:
    """Selects the actions that match all fields; a field that is None or empty matches all.

    Attributes:
        labels: Labels of the stored object; the value None matches any.
    """

    run: str | None = None
    project: str | None = None
    domain: str | None = None
    phases: Collection[str] = ()
    parent: str | None = None
    unrecorded: bool = False
    labels: Mapping[str, str | None] = field(default_factory=dict)

    @property
    def matches_all(self) -> bool:
        """Whether it matches every action."""
        return self == _ALL

    def matches(self, action: Summary) -> bool:
        """Whether it matches an action."""
        return self._matches(action, (action.phase or Phase.QUEUED).name)

    def _matches(self, action: Summary | ActionRow, phase: str | None) -> bool:
        return (
            self.run in (None, action.run)
            and self.project in (None, action.project)
            and self.domain in (None, action.domain)
            and (not self.phases or phase in self.phases)
            and self.parent in (None, action.parent)
            and not (self.unrecorded and action.recorded)
        )

    def has_labels(self, kv: KeyValue) -> bool:
        """Whether a stored object has the labels; raises DecodeError."""
        if not self.labels:
            return True
        found = codec_of(kv.value).decode(kv.value).metadata.labels
        return all(
            key in found and value in (None, found[key]) for key, value in self.labels.items()
        )

    def selects(self, row: Row) -> bool:
        """Whether it matches the action of a row; other rows are omitted."""
        return isinstance(row, ActionRow) and self._matches(row, row.phase)


_ALL = Filter()


class RowSelection:
    """Selects the rows of pages by a filter.

    Attributes:
        undecodable: Number of values that are not TaskActions; they have rows only if the filter
            matches every action, since it cannot be applied to them.
    """

    def __init__(self, stored: StoredObjects, selected: Filter, limit: int | None) -> None:
        self.undecodable = 0
        self._stored = stored
        self._filter = None if selected.matches_all else selected
        self._left = limit

    @property
    def is_full(self) -> bool:
        """Whether the limit is reached."""
        return self._left == 0

    def actions(self, page: RangeResult) -> Iterator[ActionRow]:
        """The actions of the next page."""
        rows = map(self._row, page.kvs)
        return (row for row in rows if isinstance(row, ActionRow))

    def rows(self, page: RangeResult) -> list[ActionRow | UndecodableRow]:
        """The rows of the next page."""
        rows: list[ActionRow | UndecodableRow] = []
        for kv in page.kvs:
            if self.is_full:
                break
            row = self._row(kv)
            if row is not None:
                rows.append(row)
                if self._left is not None:
                    self._left -= 1
        return rows

    def _row(self, kv: KeyValue) -> ActionRow | UndecodableRow | None:
        if self._filter is not None:
            # Most do not match: reading a few fields is cheaper than decoding the object.
            try:
                parse_key(self._stored.prefix, kv.key)
                summary = codec_of(kv.value).summarize(kv.value)
                if not (self._filter.matches(summary) and self._filter.has_labels(kv)):
                    return None
            except DecodeError:
                self.undecodable += 1
                return None
        row = stored_row(self._stored.prefix, kv)
        if isinstance(row, UndecodableRow):
            self.undecodable += 1
            if self._filter is not None:
                return None
        return row


async def list_actions(
    common: CommonOptions,
    selected: Filter,
    *,
    output: str | None = None,
    limit: int | None = None,
    watch: bool = False,
) -> int:
    """Print the selected actions in the order of their keys, as they are read.

    With ``watch`` it prints the present ones, then each that changes, until a signal.
    """
    form = chosen_format(output, elsewhere="jsonl")
    named = selected.run
    selected = _of_run(selected)
    if watch:
        from etcd_actions.cli.commands.watch import watch_selected  # noqa: PLC0415 (slow to import)

        if limit is not None:
            raise ConfigError("--limit: with --watch there is no last action: leave one out")
        if selected.labels:
            raise ConfigError("--label: changes have no labels: leave out --watch")
        none = "no action matches yet: waiting for one"
        if named is not None:
            selected, near = await _existing(common, named, selected)
            none = f"no action of {named} matches yet: waiting for one{near}"
        run = Name(run=selected.run or "", namespace=common.namespace or "")
        return await watch_selected(common, form, selected.selects, run, none)
    undecodable = 0
    with standard_output() as write:
        printer = _Printer(form, write, qualify_runs=common.qualify_runs)
        async with open_stored_objects(common) as stored:
            undecodable = await printer.print(stored, selected, limit)
            if named is not None and not printer.has_rows:
                # The text may be the name of an action, or of nothing.
                found = await stored.names.find(parse_name(named))
                if all(each.run != selected.run for each in found):
                    selected = _only(selected, await find_run(stored.names, named))
                    undecodable = await printer.print(stored, selected, limit)
        printer.finish()
    warn_undecodable(undecodable, shown=selected.matches_all)
    return ExitCode.OK


async def _existing(common: CommonOptions, named: str, selected: Filter) -> tuple[Filter, str]:
    """The filter by the run that a text names, and the nearest names if there is no such run.

    The text may name an action. The run may still start.
    """
    async with open_stored_objects(common) as stored:
        found = await stored.names.find(parse_name(named))
        if found and all(each.run != selected.run for each in found):
            return _only(selected, await find_run(stored.names, named)), ""
        return selected, await nearest_to_unknown(stored.names, named)


def _only(selected: Filter, run: Name) -> Filter:
    """The filter with a run that exists."""
    return replace(selected, run=run.run, project=run.project, domain=run.domain)


def _of_run(selected: Filter) -> Filter:
    """A filter with the run that its text names: the text may be a path, or name an action."""
    if selected.run is None:
        return selected
    try:
        name = parse_name(selected.run)
    except ConfigError as error:
        raise ConfigError(f"--run {error}") from None
    return replace(
        selected,
        run=name.run or name.object,
        project=selected.project or name.project or None,
        domain=selected.domain or name.domain or None,
    )


class _Printer:
    """Prints the rows of listings as they are read; of a document the start with the first page."""

    def __init__(self, form: str, write: Write, *, qualify_runs: bool) -> None:
        self._document = Document(form) if form in ("json", "yaml") else None
        self._lines: Format = self._document or formatter(form, qualify_runs=qualify_runs)
        self._write = write
        self._revision = 0
        self._is_started = False
        self.has_rows = False

    async def print(self, stored: StoredObjects, selected: Filter, limit: int | None) -> int:
        """Print the selected actions; returns the number of values that cannot be decoded."""
        run = Name(selected.project or "", selected.domain or "", selected.run or "")
        selection = RowSelection(stored, selected, limit)
        async with stored.pages(run) as pages:
            async for page in pages:
                self._revision = page.revision
                if rows := selection.rows(page):
                    self.has_rows = True
                    self._start()
                    self._write(self._lines.format(rows))
                if selection.is_full:
                    break
        return selection.undecodable

    def finish(self) -> None:
        """Print the end of a document."""
        self._start()
        if self._document is not None:
            self._write(self._document.end())
        elif not self.has_rows:
            self._write(self._lines.format([]))

    def _start(self) -> None:
        if self._document is not None and not self._is_started:
            self._write(self._document.start(self._revision))
        self._is_started = True


def warn_undecodable(count: int, *, shown: bool) -> None:
    """Print to standard error how many values could not be decoded."""
    if count:
        values = (
            f"{count} values are not TaskActions" if count > 1 else "1 value is not a TaskAction"
        )
        omitted = f"{values} and omitted: list shows them without a filter"
        print_message(values if shown else omitted)
