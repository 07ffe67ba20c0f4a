"""``etcd-actions dead-letters``: the reports that the run service rejected for good."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

import msgspec
import trio

from etcd_actions._internal.quoting import printable, quoted
from etcd_actions.cli.backends import DeadLetters, open_dead_letters
from etcd_actions.cli.exit_codes import ExitCode, print_message
from etcd_actions.cli.formats.changes import Change, Changes
from etcd_actions.cli.formats.rows import as_text
from etcd_actions.cli.formats.standard_output import chosen_format, print_rows
from etcd_actions.cli.names import Name, nearest_to_unknown, parse_name
from etcd_actions.cli.options import CommonOptions
from etcd_actions.cli.stored_objects import open_stored_objects
from etcd_actions.dead_letters import DeadLetter
from etcd_actions.errors import ConfigError, FailedPrecondition
from etcd_actions.model import canonical_name
from etcd_actions.run_service.status_codes import code_name

_MOST_SHOWN: Final = 10


class DeadLetterRow(msgspec.Struct, kw_only=True, omit_defaults=True, tag="DEAD_LETTER"):
    """A dead letter for people and programs.

    ``object`` is ``there``, ``gone``, or ``replaced`` if another object has its key. ``keeps``
    names the copy in the dead letter, for a retry without the object: ``object``, ``state``
    without the fields that a record needs, or nothing.
    """

    key: str
    object_key: str
    namespace: str
    name: str
    project: str
    domain: str
    run: str
    action: str
    what: str
    phase: str
    attempts: int
    code: str
    error: str
    first: str
    last: str
    times: int
    object: str
    keeps: str
    org: str = ""
    uid: str = ""
    deleted: bool = False
    retry_requested_at: str = ""
    note: str = ""


class UnreadableRow(msgspec.Struct, kw_only=True, omit_defaults=True, tag="UNREADABLE"):
    """A key below the prefix of dead letters whose value is not a dead letter."""

    key: str
    reason: str


Row = DeadLetterRow | UnreadableRow


class DeadLetterSelection:
    """Selects the dead letters of a command.

    Args:
        actions: Arguments as of ``get``, or keys of dead letters; empty for all.
        only: The only namespace; None for all.
        for_change: Whether the command changes them: then a name must be that of one run or action.

    Raises:
        ConfigError: An argument cannot be an action.
    """

    def __init__(
        self, actions: Sequence[str], only: str | None, *, for_change: bool = False
    ) -> None:
        self._only = only
        self._for_change = for_change
        self._keys = {text for text in actions if text.startswith("/")}
        self._names = {text: parse_name(text) for text in actions if text not in self._keys}

    def of(self, dead_letters: Sequence[DeadLetter]) -> tuple[list[DeadLetter], list[str]]:
        """The selected dead letters, and the arguments that match none.

        Raises:
            ConfigError: For a change, an argument is the name of several runs or actions.
        """
        dead_letters = [each for each in dead_letters if self._is_in_namespace(each)]
        if not self._names and not self._keys:
            return dead_letters, []
        by_key = {as_text(each.dead_letter_key): each for each in dead_letters}
        selected = self._keys & by_key.keys()
        missing = sorted(self._keys - by_key.keys())
        for text, name in self._names.items():
            matching = {key for key, each in by_key.items() if _matches(name, each)}
            selected |= matching
            meant = sorted({_meant(name, by_key[key]) for key in matching})
            if self._for_change and len(meant) > 1:
                raise ConfigError(
                    f"{text} is the name of several: give one of {', '.join(meant[:_MOST_SHOWN])}"
                )
            if not matching:
                missing.append(text)
        return [each for key, each in by_key.items() if key in selected], missing

    def _is_in_namespace(self, dead_letter: DeadLetter) -> bool:
        if self._only is None or not dead_letter.key:
            return True
        return dead_letter.namespace_and_name.startswith(f"{self._only}/")


async def list_dead_letters(
    common: CommonOptions, actions: Sequence[str], output: str | None
) -> int:
    """Print the dead letters, the oldest first."""
    form = chosen_format(output, elsewhere="jsonl")
    selection = DeadLetterSelection(actions, common.namespace)
    async with open_dead_letters(common) as client:
        dead_letters, missing = selection.of(await client.dead_letters())
        objects = await client.dead_letter_objects(dead_letters)
    rows = [_row(each, objects) for each in dead_letters]
    print_rows(form, rows, {"dead_letters": rows}, lambda _: _table(rows))
    return await _report_missing(common, missing)


async def retry_dead_letters(
    common: CommonOptions,
    actions: Sequence[str],
    every: bool,
    wait: bool,
    within: float,
    output: str | None = None,
) -> int:
    """Request that the leader reports again."""
    selection, changes = _selection(common, actions, every), Changes(output)
    async with open_dead_letters(common) as client:
        dead_letters, missing = selection.of(await client.dead_letters())
        requested = [each for one in dead_letters if (each := await _request(client, one, changes))]
        code = ExitCode.OK
        if requested and not await client.has_leader():
            print_message("there is no leader: the requests stay until there is one")
        elif not dead_letters and not missing:
            changes.note("there are no dead letters")
        if wait and requested:
            code = await _wait(client, requested, within, changes)
    changes.finish()
    return (await _report_missing(common, missing)) or code


async def delete_dead_letters(
    common: CommonOptions, actions: Sequence[str], every: bool, output: str | None = None
) -> int:
    """Delete dead letters, so that the reports are never made."""
    selection, changes = _selection(common, actions, every), Changes(output)
    async with open_dead_letters(common) as client:
        dead_letters, missing = selection.of(await client.dead_letters())
        for each in dead_letters:
            deleted = await client.delete_dead_letter(each)
            change = _change(each, "deleted" if deleted else "kept")
            described = _described(each)
            changes.add(
                change, f"deleted {described}" if deleted else f"{described} has changed: it stays"
            )
        if not dead_letters and not missing:
            changes.note("there are no dead letters")
    changes.finish()
    return await _report_missing(common, missing)


def _selection(common: CommonOptions, actions: Sequence[str], every: bool) -> DeadLetterSelection:
    if bool(actions) == every:
        raise ConfigError(
            "give ACTIONs, or --all" if not every else "give ACTIONs or --all, not both"
        )
    return DeadLetterSelection(actions, common.namespace, for_change=True)


async def _request(
    client: DeadLetters, dead_letter: DeadLetter, changes: Changes
) -> DeadLetter | None:
    try:
        requested = await client.retry_dead_letter(dead_letter)
    except FailedPrecondition as error:
        print_message(f"{_described(dead_letter)}: {error}: see dead-letters delete")
        return None
    described = _described(dead_letter)
    changes.add(
        _change(dead_letter, "requested" if requested else "accepted"),
        f"requested {described}" if requested else f"{described} is accepted",
    )
    return requested


async def _wait(
    client: DeadLetters, requested: Sequence[DeadLetter], within: float, changes: Changes
) -> ExitCode:
    """Wait for the results of requests and print them."""
    answered, rejected = 0, 0
    with trio.move_on_after(within):
        for each in requested:
            result = await client.wait_dead_letter(each)
            answered += 1
            if result is None:
                changes.add(_change(each, "accepted"), f"accepted: {_described(each)}")
                continue
            rejected += 1
            why = result.note or _why(code_name(result.code), result.error)
            change = _change(each, "rejected")
            change.reason = why
            changes.add(change, f"rejected again: {_described(each)}: {why}")
    if answered < len(requested):
        print_message(
            f"{len(requested) - answered} of {len(requested)} requests have no result within "
            f"{within:g} s, and stay: is etcd-actions run running, and the run service up?"
        )
        return ExitCode.UNAVAILABLE
    return ExitCode.ACTION if rejected else ExitCode.OK


def _change(dead_letter: DeadLetter, result: str) -> Change:
    return Change(name=as_text(dead_letter.dead_letter_key), result=result)


def _matches(name: Name, dead_letter: DeadLetter) -> bool:
    namespace, _, stored = dead_letter.namespace_and_name.rpartition("/")
    action = None if dead_letter.unreadable else dead_letter.action_id
    return name.may_be(action, namespace, stored)


def _meant(name: Name, dead_letter: DeadLetter) -> str:
    """The full path of the run or action that a matching name means; of an unknown one its key."""
    action = dead_letter.action_id
    if dead_letter.unreadable or not action.run:
        return as_text(dead_letter.dead_letter_key)
    run = f"{action.project}/{action.domain}/{action.run}"
    stored = dead_letter.namespace_and_name.rpartition("/")[2]
    is_run = name.object not in ("", stored) or bool(name.project and not name.action)
    return run if is_run else f"{run}/{canonical_name(action.run, action.name)}"


def _described(dead_letter: DeadLetter) -> str:
    if dead_letter.unreadable:
        return as_text(dead_letter.dead_letter_key)
    action = dead_letter.action_id
    name = f"{action.project}/{action.domain}/{action.run}/{action.name}"
    return f"the {dead_letter.what} of {name}"


def _why(code: str, error: str) -> str:
    """The code and the message; a gRPC message begins with the code, and can be empty."""
    message = error if error.startswith(f"{code}: ") else f"{code}: {error}"
    return message.strip().removesuffix(":")


def _row(dead_letter: DeadLetter, objects: Mapping[bytes, int]) -> Row:
    if dead_letter.unreadable:
        return UnreadableRow(
            key=as_text(dead_letter.dead_letter_key), reason=dead_letter.unreadable
        )
    namespace, _, name = dead_letter.namespace_and_name.rpartition("/")
    action = dead_letter.action_id
    created = objects.get(dead_letter.key)
    state = "gone" if created is None else "there"
    if created is not None and dead_letter.create_revision not in (0, created):
        state = "replaced"
    return DeadLetterRow(
        key=as_text(dead_letter.dead_letter_key),
        object_key=as_text(dead_letter.key),
        namespace=namespace,
        name=name,
        project=action.project,
        domain=action.domain,
        run=action.run,
        action=action.name,
        org=action.org,
        uid=dead_letter.uid,
        what=dead_letter.what,
        phase=dead_letter.phase.name,
        attempts=dead_letter.attempts,
        deleted=dead_letter.is_deleted,
        code=code_name(dead_letter.code),
        error=dead_letter.error,
        first=dead_letter.first,
        last=dead_letter.last,
        times=dead_letter.times,
        object=state,
        keeps=dead_letter.keeps,
        retry_requested_at=dead_letter.request.at if dead_letter.request is not None else "",
        note=dead_letter.note,
    )


def _table(rows: Sequence[Row]) -> bytes:
    from etcd_actions.cli.formats.table import Cell, Terminal, age, aligned  # noqa: PLC0415 (rich is slow to import)

    now = datetime.now(UTC)
    lines = [("ACTION", "CALL", "PHASE", "SINCE", "TIMES", "OBJECT", "RETRY", "WHY")]
    for row in rows:
        if isinstance(row, UnreadableRow):
            lines.append((row.key, "", "UNREADABLE", "", "", "", "", row.reason))
            continue
        since = f"{age(row.first, now)} ago"
        why = row.note or _why(row.code, row.error)
        action = "/".join((row.project, row.domain, row.run, row.action))
        retry = "requested" if row.retry_requested_at else ""
        lines.append((action, row.what, row.phase, since, str(row.times), row.object, retry, why))
    shown = [[printable(" ".join(text.split())) for text in line] for line in lines]
    return Terminal(sys.stdout).render([[Cell(line)] for line in aligned(shown)])


async def _report_missing(common: CommonOptions, missing: Sequence[str]) -> ExitCode:
    if not missing:
        return ExitCode.OK
    async with open_stored_objects(common) as stored:
        for text in missing:
            near = "" if text.startswith("/") else await nearest_to_unknown(stored.names, text)
            print_message(f"{quoted(text)} has no dead letter{near}")
    return ExitCode.NOT_FOUND
