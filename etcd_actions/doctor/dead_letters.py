"""What the run service refused for good."""

from __future__ import annotations

from etcd_actions.dead_letters import DeadLetter, read_dead_letters
from etcd_actions.doctor.findings import Finding, Kind, Severity
from etcd_actions.doctor.subject import Subject, as_text
from etcd_actions.errors import PermissionDenied, first_error
from etcd_actions.etcd import EtcdClient
from etcd_actions.etcd.api import KeyRange
from etcd_actions.etcd.paging import open_pages
from etcd_actions.model import Keyspace

DEAD_LETTERS = Kind(
    id="dead-letters",
    severity=Severity.WARNING,
    meaning="The run service refused these for good: it shows their runs without them, or as going "
    "on for ever.",
    remedy="etcd-actions dead-letters list says why; mend the cause, then: "
    "etcd-actions dead-letters retry --all",
)
UNREADABLE = Kind(
    id="dead-letters-unreadable",
    severity=Severity.WARNING,
    meaning="Somebody else writes where dead letters are kept, or a later release did: what these "
    "say is not known.",
    remedy="etcdctl get '<key>'; where it is nobody's: etcd-actions dead-letters delete '<key>'",
)

KINDS = (DEAD_LETTERS, UNREADABLE)


async def check_letters(subject: Subject, etcd: EtcdClient) -> list[Finding]:
    """Read the dead letters; whether that is permitted is another check's finding."""
    keys = Keyspace(subject.prefix)
    letters: list[DeadLetter] = []
    try:
        async with open_pages(etcd, KeyRange.of_prefix(keys.dead_letters)) as pages:
            async for page in pages:
                letters += read_dead_letters(keys, page.kvs)
    except* PermissionDenied as group:
        denied: PermissionDenied | None = first_error(group)
    else:
        denied = None
    if denied is not None:
        return []
    within = f"{subject.namespace}/" if subject.namespace else ""
    wanted = [letter for letter in letters if letter.namespace_and_name.startswith(within)]
    return [
        *_open([letter for letter in wanted if not letter.unreadable], subject.limits.examples),
        *_unreadable([letter for letter in letters if letter.unreadable]),
    ]


def _open(letters: list[DeadLetter], examples: int) -> list[Finding]:
    if not letters:
        return []
    letters.sort(key=lambda letter: letter.dead_letter_created)
    named = "; ".join(
        f"the {letter.what} of {letter.namespace_and_name} ({letter.error})"
        for letter in letters[:examples]
    )
    rest = f"; and {len(letters) - examples} more" if len(letters) > examples else ""
    since = f"the oldest since {letters[0].first}"
    return [DEAD_LETTERS.found(f"{len(letters)}, {since}: {named}{rest}")]


def _unreadable(letters: list[DeadLetter]) -> list[Finding]:
    if not letters:
        return []
    first = as_text(letters[0].dead_letter_key)
    seen = f"{len(letters)}, such as {first}: {letters[0].unreadable}"
    return [UNREADABLE.found(seen, key=first)]
