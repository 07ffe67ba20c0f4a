"""The output of ``get -o details``: the fields of a stored object for a person."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import IO

from etcd_actions._internal.quoting import printable
from etcd_actions.cli.formats.action_tables import phase_cell
from etcd_actions.cli.formats.rows import ActionRow, stored_row
from etcd_actions.cli.formats.table import Cell, Line, Terminal, age, aligned
from etcd_actions.codecs import codec_of
from etcd_actions.etcd.api import KeyValue
from etcd_actions.model import ActionObject

_INDENT = 2
_TITLE_WIDTH = 14


def details_text(
    prefix: bytes, kvs: Sequence[KeyValue], file: IO[str], now: datetime | None = None
) -> bytes:
    """The lines about stored objects; none is cut, and a terminal wraps them.

    Args:
        prefix: The part of keys before ``<namespace>/<name>``.
        kvs: The stored objects.
        file: The output, which decides about styles.
        now: The time for actions that have not ended.
    """
    now = now or datetime.now(UTC)
    lines: list[Line] = []
    for kv in kvs:
        if lines:
            lines.append([])
        row = stored_row(prefix, kv)
        if isinstance(row, ActionRow):
            action = codec_of(kv.value).decode(kv.value)
            lines += [[Cell(printable(f"{row.namespace}/{row.name}"), "bold")]]
            lines += _state(action, row, now)
            lines += _names(action)
            lines += _conditions_and_phases(action)
        else:
            lines += [[Cell(printable(row.key), "bold")], _field("unreadable", row.reason, "red")]
        lines += [_field("etcd", _etcd_facts(kv))]
    return Terminal(file).render(lines, wrap=True)


def _state(action: ActionObject, row: ActionRow, now: datetime) -> Iterable[Line]:
    spec, status = action.spec, action.status
    yield _field("action", "/".join((spec.project, spec.domain, spec.run_name, spec.action_name)))
    yield _field("parent", spec.parent_action_name or "none: the root of its run")
    phase = phase_cell(row)
    yield _field("phase", phase.text, phase.style)
    yield _field("attempts", str(status.attempts))
    recorded = ("yes", "green") if row.recorded else ("no", "")
    yield _field("recorded", *recorded)
    if row.error is not None:
        kind = f" ({row.error.kind})" if row.error.kind else ""
        yield _field("error", f"{row.error.code}{kind}: {row.error.message}", "red")
    since = age(row.created_at, now)
    yield _field("created", f"{row.created_at or 'unknown'}{since and f', {since} ago'}")
    if row.terminal:
        took = age(row.created_at, now, row.ended_at) if row.ended_at else ""
        yield _field("ended", f"{row.ended_at or 'unknown'}{took and f', after {took}'}")
    if action.is_deleting:
        yield _field("deleting", f"since {action.metadata.deletion_timestamp}", "magenta")


def _names(action: ActionObject) -> Iterable[Line]:
    spec, status, metadata = action.spec, action.status, action.metadata
    texts = {
        "name": spec.short_name,
        "task type": spec.task_type,
        "kind": spec.action_type,
        "group": spec.group,
        "input": spec.input_uri,
        "output": action.output_uri,
        "cache key": spec.cache_key,
        "signalled": " ".join(filter(None, (status.signalled_by, status.signalled_at))),
        "uid": metadata.uid,
        "finalizers": ", ".join(metadata.finalizers),
        "owners": ", ".join(f"{owner.kind}/{owner.name}" for owner in metadata.owner_references),
    }
    for title, text in texts.items():
        if text:
            yield _field(title, text)
    yield from _block("labels", [(name, [text]) for name, text in metadata.labels.items()])
    yield from _block(
        "annotations", [(name, [text]) for name, text in metadata.annotations.items()]
    )


def _conditions_and_phases(action: ActionObject) -> Iterable[Line]:
    status = action.status
    yield from _block(
        "conditions",
        [
            (each.type, [each.status, each.reason, *_when(each.last_transition_time, each.message)])
            for each in status.conditions
        ],
    )
    yield from _block(
        "phases",
        [(each.phase, _when(each.occurred_at, each.message)) for each in status.phase_history],
    )


def _when(time: str, message: str) -> list[str]:
    return [time, message] if message else [time]


def _etcd_facts(kv: KeyValue) -> str:
    lease = f", lease {kv.lease:x}" if kv.lease else ""
    return (
        f"created at revision {kv.create_revision}, changed at {kv.mod_revision}, "
        f"version {kv.version}, {len(kv.value)} bytes{lease}"
    )


def _field(title: str, text: str, style: str = "") -> Line:
    return [Cell(f"{'':{_INDENT}}{title:<{_TITLE_WIDTH}}", "dim"), Cell(printable(text), style)]


def _block(title: str, rows: Sequence[tuple[str, Sequence[str]]]) -> Iterable[Line]:
    """A field of several lines, whose cells are below each other."""
    cells = [[printable(text) for text in (first, *rest)] for first, rest in rows]
    for index, line in enumerate(aligned(cells)):
        yield _field("" if index else title, line)
