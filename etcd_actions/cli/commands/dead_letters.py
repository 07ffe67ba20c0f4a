"""``etcd-actions dead-letters``: what the run service refused for good."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import msgspec
import trio

from etcd_actions._internal.quoting import printable, quoted
from etcd_actions.cli.backends import open_client
from etcd_actions.cli.commands.get import Wanted
from etcd_actions.cli.exit_codes import ExitCode, say
from etcd_actions.cli.formats.rows import as_text
from etcd_actions.cli.formats.standard_output import chosen_format, standard_output
from etcd_actions.cli.options import CommonOptions
from etcd_actions.client import ActionsClient
from etcd_actions.dead_letters import DeadLetter
from etcd_actions.errors import ConfigError, FailedPrecondition
from etcd_actions.model import canonical_name
from etcd_actions.run_service.status_codes import code_name


class DeadLetterRow(msgspec.Struct, kw_only=True, omit_defaults=True, tag="DEAD_LETTER"):
    """A letter for people and programs.

    ``object`` is ``there``, ``gone``, or ``replaced`` by another one of the same key. ``keeps``
    says what the letter itself has for a retry when the object is gone: ``object``, ``state``
    without what a record needs, or nothing.
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
    """A key in the letters' place that holds none."""

    key: str
    reason: str


Row = DeadLetterRow | UnreadableRow


class Selection:
    """Picks the letters that a command is about.

    Args:
        actions: What ``get`` takes, or a letter's whole key; empty for all.
        only: The only namespace wanted; all when None.

    Raises:
        ConfigError: One of them can be no action.
    """

    def __init__(self, actions: Sequence[str], only: str | None) -> None:
        self._only = only
        self._keys = {text for text in actions if text.startswith("/")}
        self._wanted = [Wanted(text, only) for text in actions if text not in self._keys]

    def of(self, letters: Sequence[DeadLetter]) -> tuple[list[DeadLetter], list[str]]:
        """Those of the letters that are wanted, and the names that fit none."""
        letters = [letter for letter in letters if self._is_in_namespace(letter)]
        if not self._wanted and not self._keys:
            return letters, []
        found = {
            letter.letter_key: letter
            for letter in letters
            if as_text(letter.letter_key) in self._keys
        }
        missing = [key for key in sorted(self._keys) if key not in map(as_text, found)]
        for wanted in self._wanted:
            fitting = [letter for letter in letters if _fits(wanted, letter)]
            found.update((letter.letter_key, letter) for letter in fitting)
            if not fitting:
                missing.append(wanted.text)
        return [letter for letter in letters if letter.letter_key in found], missing

    def _is_in_namespace(self, letter: DeadLetter) -> bool:
        if self._only is None or not letter.key:
            return True
        return letter.namespace_and_name.startswith(f"{self._only}/")


async def list_letters(common: CommonOptions, actions: Sequence[str], output: str | None) -> int:
    """Print the letters, the oldest first."""
    form = chosen_format(output, elsewhere="jsonl")
    selection = Selection(actions, common.namespace)
    async with open_client(common) as client:
        letters, missing = selection.of(await client.dead_letters())
        objects = await client.dead_letter_objects(letters)
    rows = [_row(letter, objects) for letter in letters]
    with standard_output() as write:
        match form:
            case "table":
                write(_table(rows))
            case "json":
                write(msgspec.json.format(msgspec.json.encode({"dead_letters": rows})) + b"\n")
            case _:
                write(msgspec.json.Encoder().encode_lines(rows))
    return _say_missing(missing)


async def retry_letters(
    common: CommonOptions, actions: Sequence[str], every: bool, wait: bool, within: float
) -> int:
    """Have letters offered again by the leader."""
    selection = _chosen(common, actions, every)
    async with open_client(common) as client:
        letters, missing = selection.of(await client.dead_letters())
        asked = [each for letter in letters if (each := await _ask(client, letter)) is not None]
        served = await client.is_anybody_elected()
        code = ExitCode.OK
        if asked and not served:
            say("no process is elected: the requests stay until one is")
        elif not letters and not missing:
            say("there are no dead letters")
        if wait and asked:
            code = await _wait(client, asked, within)
    return _say_missing(missing) or code


async def delete_letters(common: CommonOptions, actions: Sequence[str], every: bool) -> int:
    """Give up on letters."""
    selection = _chosen(common, actions, every)
    async with open_client(common) as client:
        letters, missing = selection.of(await client.dead_letters())
        for letter in letters:
            deleted = await client.delete_dead_letter(letter)
            say(
                f"deleted {_named(letter)}"
                if deleted
                else f"{_named(letter)} has changed: it stays"
            )
        if not letters and not missing:
            say("there are no dead letters")
    return _say_missing(missing)


def _chosen(common: CommonOptions, actions: Sequence[str], every: bool) -> Selection:
    if bool(actions) == every:
        raise ConfigError(
            "give ACTIONs, or --all" if not every else "give ACTIONs or --all, not both"
        )
    return Selection(actions, common.namespace)


async def _ask(client: ActionsClient, letter: DeadLetter) -> DeadLetter | None:
    try:
        asked = await client.retry_dead_letter(letter)
    except FailedPrecondition as error:
        say(f"{_named(letter)}: {error}: see dead-letters delete")
        return None
    say(f"asked for {_named(letter)}" if asked is not None else f"{_named(letter)} is accepted")
    return asked


async def _wait(client: ActionsClient, asked: Sequence[DeadLetter], within: float) -> ExitCode:
    """Say what becomes of requests."""
    answered, refused = 0, 0
    with trio.move_on_after(within):
        for letter in asked:
            answer = await client.wait_dead_letter(letter)
            answered += 1
            if answer is None:
                say(f"accepted: {_named(letter)}")
                continue
            refused += 1
            why = answer.note or _why(code_name(answer.code), answer.error)
            say(f"refused again: {_named(letter)}: {why}")
    if answered < len(asked):
        say(
            f"{len(asked) - answered} of {len(asked)} requests are not answered within "
            f"{within:g} s, and stay: is etcd-actions run running, and the run service up?"
        )
        return ExitCode.UNAVAILABLE
    return ExitCode.ACTION if refused else ExitCode.OK


def _fits(wanted: Wanted, letter: DeadLetter) -> bool:
    namespace, _, name = letter.namespace_and_name.rpartition("/")
    if name != wanted.name or wanted.namespace not in (None, namespace):
        return False
    if wanted.action is None or letter.unreadable:
        return True
    found, meant = letter.action_id, wanted.action
    return (found.project, found.domain, found.run) == (
        meant.project,
        meant.domain,
        meant.run,
    ) and canonical_name(found.run, found.name) == canonical_name(meant.run, meant.name)


def _named(letter: DeadLetter) -> str:
    if letter.unreadable:
        return as_text(letter.letter_key)
    named = letter.action_id
    return f"the {letter.what} of {named.project}/{named.domain}/{named.run}/{named.name}"


def _why(code: str, error: str) -> str:
    """The code and the words; what came by gRPC begins with the code, and may have no words."""
    words = error if error.startswith(f"{code}: ") else f"{code}: {error}"
    return words.strip().removesuffix(":")


def _row(letter: DeadLetter, objects: Mapping[bytes, int]) -> Row:
    if letter.unreadable:
        return UnreadableRow(key=as_text(letter.letter_key), reason=letter.unreadable)
    namespace, _, name = letter.namespace_and_name.rpartition("/")
    named = letter.action_id
    created = objects.get(letter.key)
    place = "gone" if created is None else "there"
    if created is not None and letter.create_revision not in (0, created):
        place = "replaced"
    return DeadLetterRow(
        key=as_text(letter.letter_key),
        object_key=as_text(letter.key),
        namespace=namespace,
        name=name,
        project=named.project,
        domain=named.domain,
        run=named.run,
        action=named.name,
        org=named.org,
        uid=letter.uid,
        what=letter.what,
        phase=letter.phase.name,
        attempts=letter.attempts,
        deleted=letter.is_deleted,
        code=code_name(letter.code),
        error=letter.error,
        first=letter.first,
        last=letter.last,
        times=letter.times,
        object=place,
        keeps=letter.keeps,
        retry_requested_at=letter.request.at if letter.request is not None else "",
        note=letter.note,
    )


def _table(rows: Sequence[Row]) -> bytes:
    from etcd_actions.cli.formats.table import Cell, Terminal, age  # noqa: PLC0415 (rich is slow to import)

    now = datetime.now(UTC)
    lines = [("ACTION", "CALL", "PHASE", "SINCE", "TIMES", "OBJECT", "RETRY", "WHY")]
    for row in rows:
        if isinstance(row, UnreadableRow):
            lines.append((row.key, "", "UNREADABLE", "", "", "", "", row.reason))
            continue
        since = f"{age(row.first, now)} ago"
        why = row.note or _why(row.code, row.error)
        action = "/".join((row.project, row.domain, row.run, row.action))
        retry = "asked" if row.retry_requested_at else ""
        lines.append((action, row.what, row.phase, since, str(row.times), row.object, retry, why))
    shown = [[printable(" ".join(text.split())) for text in line] for line in lines]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    cells = [
        [
            Cell(
                "  ".join(
                    text.ljust(width) for text, width in zip(line, widths, strict=True)
                ).rstrip()
            )
        ]
        for line in shown
    ]
    return Terminal(sys.stdout).render(cells)


def _say_missing(missing: Sequence[str]) -> ExitCode:
    for text in missing:
        say(f"{quoted(text)} has no dead letter")
    return ExitCode.NOT_FOUND if missing else ExitCode.OK
