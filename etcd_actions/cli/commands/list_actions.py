"""``etcd-actions list``: the actions that there are, at one revision."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import msgspec

from etcd_actions.cli.exit_codes import ExitCode, say
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
from etcd_actions.model import Summary, parse_key
from etcd_actions.storage.watched_keys import watched_keys


@dataclass(frozen=True, kw_only=True)
class Filter:
    """Which actions are wanted: those that all of it fits.

    Attributes:
        run: The run's whole name; None for all.
        project: The project; None for all.
        domain: The domain; None for all.
        phases: Names of the phases; empty for all.
        parent: The name of the parent action; None for all.
        unrecorded: Only those that are not recorded.
    """

    run: str | None = None
    project: str | None = None
    domain: str | None = None
    phases: Collection[str] = ()
    parent: str | None = None
    unrecorded: bool = False

    @property
    def takes_all(self) -> bool:
        """Whether every action fits."""
        return self == _ALL

    def fits(self, action: Summary) -> bool:
        """Whether an action is wanted."""
        return (
            (self.run is None or action.run == self.run)
            and (self.project is None or action.project == self.project)
            and (self.domain is None or action.domain == self.domain)
            and (not self.phases or action.phase.name in self.phases)
            and (self.parent is None or action.parent == self.parent)
            and not (self.unrecorded and action.recorded)
        )


_ALL = Filter()


class JsonDocument:
    """One JSON document, written piece by piece: the revision, then the rows in an array."""

    def __init__(self) -> None:
        self._encoder = msgspec.json.Encoder()
        self._between = b"\n"

    def begin(self, revision: int) -> bytes:
        """What comes before the rows."""
        return b'{"revision":%d,"actions":[' % revision

    def format(self, rows: Sequence[Row], /) -> bytes:
        """The next rows."""
        if not rows:
            return b""
        encoded = self._between + b",\n".join(map(self._encoder.encode, rows))
        self._between = b",\n"
        return encoded

    def end(self) -> bytes:
        """What comes after the rows."""
        return b"\n]}\n"


class Selection:
    """Picks the rows of what is wanted out of pages.

    Attributes:
        undecodable: Number of values that are no TaskAction; they are rows only where every
            action is wanted, since nobody knows whether they fit.
    """

    def __init__(self, prefix: bytes, wanted: Filter, limit: int | None) -> None:
        self.undecodable = 0
        self._prefix = prefix
        self._wanted = None if wanted.takes_all else wanted
        self._left = limit

    @property
    def is_full(self) -> bool:
        """Whether there are as many rows as were asked for."""
        return self._left == 0

    def actions(self, page: RangeResult) -> Iterator[tuple[int, ActionRow]]:
        """The actions of the next page, and at which revision each was created."""
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
            if row is None:
                continue
            rows.append(row)
            if self._left is not None:
                self._left -= 1
        return rows

    def _row(self, kv: KeyValue) -> ActionRow | UndecodableRow | None:
        if self._wanted is not None:
            # Most do not fit: a look at a few fields is cheaper than the whole object.
            try:
                parse_key(self._prefix, kv.key)
                fits = self._wanted.fits(codec_of(kv.value).summarize(kv.value))
            except DecodeError:
                self.undecodable += 1
                return None
            if not fits:
                return None
        row = stored_row(self._prefix, kv)
        if isinstance(row, UndecodableRow):
            self.undecodable += 1
            if self._wanted is not None:
                return None
        return row


async def list_actions(
    common: CommonOptions, wanted: Filter, *, output: str | None = None, limit: int | None = None
) -> int:
    """Print the actions that are wanted, in the order of their keys, as they are read.

    Args:
        common: The settings.
        wanted: Which ones.
        output: ``table``, ``json`` or ``jsonl``; None for what fits standard output.
        limit: The most rows; None for all.
    """
    form = chosen_format(output, elsewhere="jsonl")
    document = JsonDocument() if form == "json" else None
    several = common.config.namespace_template is not None
    lines: Format = document or _lines(form, runs_of_projects=several)
    selection = Selection(common.prefix, wanted, limit)
    with standard_output() as write:
        async with common.open_etcd() as etcd:
            if wanted.run is None:
                ranges, revision = [watched_keys(common.prefix, common.namespace)[0]], 0
            else:
                ranges, revision = await find_run(etcd, common.prefix, common.namespace, wanted.run)
            # Without a namespace there is no range to read, but still a document to print.
            ranges = ranges or [KeyRange.of_key(common.prefix)]
            begun = False
            for keys in ranges:
                async with open_pages(etcd, keys, revision=revision) as pages:
                    async for page in pages:
                        revision = page.revision
                        if document is not None and not begun:
                            write(document.begin(revision))
                            begun = True
                        write(lines.format(selection.rows(page)))
                        if selection.is_full:
                            break
                if selection.is_full:
                    break
            if document is not None:
                write(document.end())
    warn_undecodable(selection.undecodable, shown=wanted.takes_all)
    return ExitCode.OK


def warn_undecodable(count: int, *, shown: bool) -> None:
    """Say on stderr how many values could not be read."""
    if not count:
        return
    values = "1 value is no TaskAction" if count == 1 else f"{count} values are no TaskActions"
    say(values if shown else f"{values} and left out: list shows them without a filter")


def _lines(form: str, *, runs_of_projects: bool) -> Format:
    if form == "jsonl":
        return JsonLines()
    from etcd_actions.cli.formats.table import ActionTable  # noqa: PLC0415 (rich is slow to import)

    return ActionTable(sys.stdout, runs_of_projects=runs_of_projects)
