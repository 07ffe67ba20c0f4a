"""A page for each run, at the URL that the SDK derives (``Run.url``), and its logs as text.

The page is read-only, has no scripts and loads nothing. All text in it is escaped. The access to a
run is checked as for the methods.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from http import HTTPStatus
from itertools import islice
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import quote

import trio
from connectrpc.code import Code

from etcd_actions._internal.untrusted_files import UnusableFile
from etcd_actions.actions.stored_action import StoredAction
from etcd_actions.client import ActionsClient
from etcd_actions.errors import EtcdActionsError, InvalidArgument, NotFound
from etcd_actions.model import ACTION_TYPE_TASK, ROOT_ACTION, ActionId, Phase, canonical_name
from etcd_actions.model.earlier_attempts import shortened
from etcd_actions.runs.reading import Actions, RunReader
from etcd_actions.runs.run_record import RunRecord
from etcd_actions.server.error_codes import Refusal
from etcd_actions.server.front.action_views import action_id_of, why_failed
from etcd_actions.server.front.attempt_messages import phase_name
from etcd_actions.web import respond

if TYPE_CHECKING:
    from etcd_actions.server.application import Calls
    from etcd_actions.server.front.attempt_logs import LogSource
    from etcd_actions.web import Message, Receive, Send

_MOST_ACTIONS: Final = 2_000
_MOST_INDENTED: Final = 20
_MOST_OF_AN_ERROR: Final = 4_000
_MOST_OF_A_LOG: Final = 4 * 1024 * 1024
_AT_ONCE: Final = 4
_PATIENCE: Final = 20.0

_SAFE: Final = (
    (
        b"content-security-policy",
        b"default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
)
_STYLE: Final = (
    "body{font:15px/1.5 system-ui,sans-serif;margin:2em;color:#222}table{border-collapse:collapse}"
    "td,th{padding:.2em .8em .2em 0;text-align:left;vertical-align:top}th{color:#666}"
    "pre{background:#f6f6f6;padding:.5em;white-space:pre-wrap;margin:0}"
    ".FAILED,.TIMED_OUT,.ABORTED{color:#b00020}.SUCCEEDED,.RECOVERED{color:#0a7a2f}"
)


class _Location(NamedTuple):
    run: ActionId
    log_of: str
    """The action whose log is requested; empty for the page."""


class _Response(NamedTuple):
    status: HTTPStatus
    text: str
    kind: str = "text/plain"


class Pages:
    """The route; see :class:`~etcd_actions.server.application.Route`.

    Args:
        client: Reads the actions.
        calls: Admits the clients.
        logs: The logs of this machine; None for none.
    """

    path = "/v2/domain/"

    def __init__(self, client: ActionsClient, calls: Calls, logs: LogSource | None = None) -> None:
        self._client = client
        self._reader = RunReader(client)
        self._calls = calls
        self._logs = logs
        self._turns = trio.CapacityLimiter(_AT_ONCE)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request."""
        answer = _Response(
            HTTPStatus.INTERNAL_SERVER_ERROR, "it failed: see the log of the service"
        )
        with self._client.containment.unit("request", "page"):
            with trio.move_on_after(_PATIENCE) as patience:
                answer = await self._answer(scope)
            if patience.cancelled_caught:
                answer = _Response(HTTPStatus.SERVICE_UNAVAILABLE, "it took too long: try again")
        await respond(
            send,
            answer.status,
            f"{answer.text}\n".encode(errors="replace"),
            _SAFE,
            kind=f"{answer.kind}; charset=utf-8",
            is_head=scope["method"] == "HEAD",
        )

    async def _answer(self, scope: Message) -> _Response:
        if scope["method"] not in ("GET", "HEAD"):
            return _Response(HTTPStatus.METHOD_NOT_ALLOWED, "use GET or HEAD")
        headers = {name.lower(): value for name, value in scope["headers"]}
        shown = headers.get(b"authorization")
        location = _location(scope["path"])
        try:
            identity = await self._calls.admit(
                None if shown is None else shown.decode("latin-1"), (scope["client"] or ("",))[0]
            )
            if location is None:
                return _Response(HTTPStatus.NOT_FOUND, "pages are /v2/domain/D/project/P/runs/RUN")
            run = location.run
            projects = None if identity is None else identity.projects
            if projects is not None and run.project not in projects:
                return _Response(HTTPStatus.FORBIDDEN, "your token may not use this project")
            async with self._turns:
                if location.log_of:
                    return _Response(HTTPStatus.OK, await self._log(location))
                found = await self._reader.actions(run)
            # In a thread: it may be large, and its parts do not change.
            page = await trio.to_thread.run_sync(_page, run, found, self._logs is not None)
            return _Response(HTTPStatus.OK, page, "text/html")
        except Refusal as error:
            return _refused(error)
        except (NotFound, FileNotFoundError) as error:
            return _Response(HTTPStatus.NOT_FOUND, str(error))
        except (InvalidArgument, UnusableFile) as error:
            return _Response(HTTPStatus.BAD_REQUEST, str(error))
        except EtcdActionsError as error:
            return _Response(HTTPStatus.SERVICE_UNAVAILABLE, f"etcd cannot be read now: {error}")

    async def _log(self, location: _Location) -> str:
        run = location.run
        action = await self._client.get_task_action(
            ActionId(run.project, run.domain, run.run, location.log_of)
        )
        if self._logs is None:
            raise NotFound("the logs are not on this machine")
        parts, size = list[bytes](), 0
        try:
            async with self._logs.open(action.incarnation, max(action.attempts, 1)) as log:
                while size < _MOST_OF_A_LOG and (part := await log.read()):
                    parts.append(part)
                    size += len(part)
        except FileNotFoundError:
            raise NotFound("there is no log of it on this machine") from None
        return b"".join(parts).decode(errors="replace")


def _location(path: str) -> _Location | None:
    match path.split("/"):
        case ["", "v2", "domain", domain, "project", project, "runs", run]:
            return _Location(ActionId(project, domain, run, ROOT_ACTION), "")
        case ["", "v2", "domain", domain, "project", project, "runs", run, "log", name]:
            return _Location(ActionId(project, domain, run, ROOT_ACTION), name)
        case _:
            return None


def _refused(refusal: Refusal) -> _Response:
    if refusal.code is Code.UNAUTHENTICATED:
        how = (
            "A browser sends no token. Look at the run with `flyte get run NAME`, or fetch this "
            'page with: curl -H "Authorization: Bearer TOKEN" URL'
        )
        return _Response(HTTPStatus.UNAUTHORIZED, f"{refusal.message}\n\n{how}")
    if refusal.code is Code.RESOURCE_EXHAUSTED:
        return _Response(HTTPStatus.TOO_MANY_REQUESTS, refusal.message)
    return _Response(HTTPStatus.SERVICE_UNAVAILABLE, refusal.message)


def _page(run: ActionId, found: Actions, has_logs: bool) -> str:
    return "".join(_parts(run, found, has_logs))


def _parts(run: ActionId, found: Actions, has_logs: bool) -> Iterator[str]:
    title = f"{run.project}/{run.domain}/{run.run}"
    yield f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
    yield f"<style>{_STYLE}</style><h1>{escape(run.run)}</h1><p>{escape(title)}</p>"
    rows = list(islice(in_order(found.actions), _MOST_ACTIONS))
    root = next((action for _, action in rows if not action.parent), None)
    yield from _about(root, found.record)
    yield "<h2>Actions</h2><table><tr><th>name<th>task<th>phase<th>attempts<th>from<th>to<th>"
    base = f"/v2/domain/{quote(run.domain, safe='')}/project/{quote(run.project, safe='')}/runs/"
    for depth, action in rows:
        name = action_id_of(action).name
        link = ""
        if has_logs and action.spec.kind == ACTION_TYPE_TASK:
            place = f"{base}{quote(run.run, safe='')}/log/{quote(name, safe='')}"
            link = f'<a href="{escape(place)}">log</a>'
        indented = f'style="padding-left:{1.2 * min(depth, _MOST_INDENTED):.1f}em"'
        yield f"<tr><td {indented}>{escape(name)}<td>{escape(action.spec.short_name)}"
        yield f"<td>{_phase(action.phase)}<td>{max(action.attempts, 1)}"
        yield f"<td>{escape(action.metadata.creation_timestamp)}<td>{escape(action.end_time)}"
        yield f"<td>{link}"
        if error := why_failed(action):
            yield f"<tr><td {indented} colspan=7><pre>{_text(error)}</pre>"
    yield "</table>"
    if omitted := len(found.actions) - len(rows):
        yield f"<p>{omitted} more are omitted: flyte get action lists them."


def _about(root: StoredAction | None, record: RunRecord | None) -> Iterator[str]:
    """The table above the actions; of an expired run by its record."""
    yield "<table>"
    phase = Phase.UNSPECIFIED if root is None else root.phase
    if record is not None:
        status = record.status
        if root is None and status is not None and status.phase in list(Phase):
            phase = Phase(status.phase)
        yield f"<tr><th>task<td>{escape(record.task.name)} {escape(record.task.version)}"
        yield f"<tr><th>created<td>{escape(record.created.isoformat())}"
        yield f"<tr><th>by<td>{escape(record.creator or 'anonymous')}"
        if root is None and status is not None and status.failure is not None:
            yield f"<tr><th>error<td><pre>{_text(status.failure.message)}</pre>"
    yield f"<tr><th>phase<td>{_phase(phase)}</table>"


def in_order(actions: Sequence[StoredAction]) -> Iterator[tuple[int, StoredAction]]:
    """Each action once, after its parent, with its depth; parents may be missing or in a cycle."""
    names = {action_id_of(action).name: action for action in actions}
    children: dict[str, list[StoredAction]] = {}
    for action in sorted(actions, key=lambda each: each.metadata.creation_timestamp, reverse=True):
        parent = canonical_name(action.spec.run_name, action.parent)
        children.setdefault(parent if parent in names else "", []).append(action)
    seen: set[bytes] = set()
    for start in (children.get("", []), actions):
        stack = [(0, action) for action in start]
        while stack:
            depth, action = stack.pop()
            if action.key not in seen:
                seen.add(action.key)
                yield depth, action
                below = children.get(action_id_of(action).name, [])
                stack.extend((depth + 1, each) for each in below)


def _phase(phase: Phase) -> str:
    name = phase_name(phase)
    return f'<span class="{name}">{name}</span>'


def _text(text: str) -> str:
    return escape(shortened(text, _MOST_OF_AN_ERROR))
