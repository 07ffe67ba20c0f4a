"""``etcd-actions list``: the existing actions, at one revision."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import msgspec

from etcd_actions.cli.exit_codes import ExitCode, print_message
from etcd_actions.cli.formats.rows import ActionRow, Row, UndecodableRow, stored_row
from etcd_actions.cli.formats.standard_output import (
    Format,
    JsonLines,
    chosen_format,
    standard_output,
)
from etcd_actions.cli.keys import find_run
from etcd_actions.cli.options import CommonOptions
from etcd_actions.codecs import codec_of
from etcd_actions.errors import DecodeError
from etcd_actions.etcd.api import KeyRange, KeyValue, RangeResult
from etcd_actions.etcd.paging import open_pages
from etcd_actions.model import Phase, Summary, parse_key
from etcd_actions.storage.watched_keys import watched_keys


@dataclass(frozen=True, kw_only=True)
class Filter:
    """Selects the actions that match all of its fields; None, and no phases, match all."""

    run: str | None = None
    project: str | None = None
    domain: str | None = None
    phases: Collection[str] = ()
    parent: str | None = None
    unrecorded: bool = False

    @property
    def matches_all(self) -> bool:
        """Whether it matches every action."""
        return self == _ALL

    def matches(self, action: Summary) -> bool:
        """Whether it matches an action."""
        return (
            self.run in (None, action.run)
            and self.project in (None, action.project)
            and self.domain in (None, action.domain)
            and (not self.phases or (action.phase or Phase.QUEUED).name in self.phases)
            and self.parent in (None, action.parent)
            and not (self.unrecorded and action.recorded)
        )


_ALL = Filter()


class JsonDocument:
    """One JSON document, written in parts: the revision, then the rows in an array."""

    def __init__(self) -> None:
        self._encoder = msgspec.json.Encoder()
        self._separator = b"\n"

    def start(self, revision: int) -> bytes:
        """The part before the rows."""
        return b'{"revision":%d,"actions":[' % revision

    def format(self, rows: Sequence[Row], /) -> bytes:
        """The next rows."""
        if not rows:
            return b""
        encoded = self._separator + b",\n".join(map(self._encoder.encode, rows))
        self._separator = b",\n"
        return encoded

    def end(self) -> bytes:
        """The part after the rows."""
        return b"\n]}\n"


class Selection:
    """Selects the rows of pages by a filter.

    Attributes:
        undecodable: Number of values that are no TaskAction; they have rows only if the filter
            matches every action, since it cannot be applied to them.
    """

    def __init__(self, prefix: bytes, selected: Filter, limit: int | None) -> None:
        self.undecodable = 0
        self._prefix = prefix
        self._filter = None if selected.matches_all else selected
        self._left = limit

    @property
    def is_full(self) -> bool:
        """Whether the limit is reached."""
        return self._left == 0

    def actions(self, page: RangeResult) -> Iterator[tuple[int, ActionRow]]:
        """The actions of the next page, each after its create revision."""
        for kv in page.kvs:
            row = self._row(kv)
            if isinstance(row, ActionRow):
                yield kv.create_revision, row

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
                parse_key(self._prefix, kv.key)
                if not self._filter.matches(codec_of(kv.value).summarize(kv.value)):
                    return None
            except DecodeError:
                self.undecodable += 1
                return None
        row = stored_row(self._prefix, kv)
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
) -> int:
    """Print the selected actions in the order of their keys, as they are read."""
    form = chosen_format(output, elsewhere="jsonl")
    document = JsonDocument() if form == "json" else None
    several = common.config.namespace_template is not None
    lines: Format = document or _lines(form, runs_of_projects=several)
    selection = Selection(common.prefix, selected, limit)
    with standard_output() as write:
        async with common.open_etcd() as etcd:
            if selected.run is None:
                ranges, revision = [watched_keys(common.prefix, common.namespace)[0]], 0
            else:
                ranges, revision = await find_run(
                    etcd, common.prefix, common.namespace, selected.run
                )
            started = False
            # Without a namespace there is no range to read, but a document to print.
            for keys in ranges or [KeyRange.of_key(common.prefix)]:
                async with open_pages(etcd, keys, revision=revision) as pages:
                    async for page in pages:
                        revision = page.revision
                        if document is not None and not started:
                            write(document.start(revision))
                            started = True
                        write(lines.format(selection.rows(page)))
                        if selection.is_full:
                            break
                if selection.is_full:
                    break
            if document is not None:
                write(document.end())
    warn_undecodable(selection.undecodable, shown=selected.matches_all)
    return ExitCode.OK


def warn_undecodable(count: int, *, shown: bool) -> None:
    """Print to standard error how many values could not be decoded."""
    if count:
        values = "1 value is no TaskAction" if count == 1 else f"{count} values are no TaskActions"
        omitted = f"{values} and omitted: list shows them without a filter"
        print_message(values if shown else omitted)


def _lines(form: str, *, runs_of_projects: bool) -> Format:
    if form == "jsonl":
        return JsonLines()
    from etcd_actions.cli.formats.action_tables import ActionTable  # noqa: PLC0415 (rich is slow to import)

    return ActionTable(sys.stdout, runs_of_projects=runs_of_projects)
