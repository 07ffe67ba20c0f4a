"""The user that etcd authenticates us as, and its permissions.

Each permission is tested by a request that needs it. For writing that is a transaction whose
compare never holds: etcd checks the permissions of the branch that it does not take.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from etcd_actions.doctor import needs
from etcd_actions.doctor.findings import Finding, Kind
from etcd_actions.doctor.subject import Subject, as_text
from etcd_actions.errors import (
    EtcdError,
    InvalidRequest,
    NoSpace,
    PermissionDenied,
    Unauthenticated,
)
from etcd_actions.etcd import EtcdClient
from etcd_actions.etcd.api import (
    Compare,
    CompareResult,
    CompareTarget,
    KeyRange,
    Permission,
    PermissionType,
    Put,
    Txn,
)
from etcd_actions.etcd.endpoints import Endpoint

_GRANT = "etcdctl role grant-permission --prefix=true <role> readwrite '<prefix>'"

PERMITTED = Kind.ok("permissions")
OPEN_TO_ALL = Kind.note(
    "authentication-off",
    "Every client that can connect to etcd can read and change everything.",
    "etcdctl auth enable, or have etcd require client certificates: --client-cert-auth",
)
NO_USER = Kind.error(
    "user-missing",
    "etcd requires a user, and the settings name none.",
    "give --user and --password-file (ETCDCTL_USER, ETCDCTL_PASSWORD)",
)
UNUSED_USER = Kind.note(
    "user-unused",
    "The settings name a user, and etcd does not require one.",
    "omit --user, or: etcdctl auth enable",
)
WRONG_PASSWORD = Kind.error(
    "authentication-failed",
    "etcd does not know the user, or the password is wrong.",
    "correct --user and its password, or set it again: etcdctl user passwd <user>",
)
NO_READ = Kind.error(
    "read-denied",
    "The actions cannot be listed or watched.",
    _GRANT,
)
NO_WRITE = Kind.error(
    "write-denied",
    "No terminal phase can be marked as recorded, so each is reported again after every start, "
    "and no action can be created.",
    _GRANT,
)
NO_OWN_KEYS = Kind.error(
    "own-keys-denied",
    "The process can elect no leader, save no checkpoint, and store no trace.",
    "etcdctl role grant-permission --prefix=true <role> readwrite '<own>'",
)
TOO_WIDE = Kind.note(
    "permissions-too-wide",
    "An attacker that takes over this process can change everything in etcd. The process needs "
    "only two prefixes.",
    "create a user that may read and write '<prefix>' and '<own>' only: etcdctl role add "
    "etcd-actions && etcdctl role grant-permission --prefix=true etcd-actions readwrite "
    "'<prefix>' && etcdctl role grant-permission --prefix=true etcd-actions readwrite '<own>'",
)
NOT_ANSWERED = Kind.error(
    "reads-fail",
    "etcd does not answer a linearizable read, which every list needs.",
    "check that most members run and that their disks keep up: etcdctl endpoint health --cluster",
)

_ROOT = "root"


@dataclass
class Access:
    """Our permissions.

    Attributes:
        reads: Whether the prefix can be read.
        revision: The store's revision; 0 if nothing could be read.
        findings: The findings about permissions.
    """

    reads: bool = False
    revision: int = 0
    findings: list[Finding] = field(default_factory=list)


async def check_access(subject: Subject, endpoints: Sequence[Endpoint]) -> Access:
    """Determine our user, and test the permissions that etcd-actions needs, without a change."""
    async with (
        subject.connect(endpoints) as etcd,
        subject.connect(endpoints, anonymous=True) as anonymous,
    ):
        try:
            guarded = await _is_guarded(subject, anonymous)
            return await _try(subject, etcd, guarded=guarded)
        except Unauthenticated as error:
            kind = NO_USER if subject.user is None else WRONG_PASSWORD
            return Access(findings=[kind.found(str(error), user=subject.user or "")])
        except EtcdError as error:
            return Access(findings=[NOT_ANSWERED.found(str(error))])


async def _is_guarded(subject: Subject, anonymous: EtcdClient) -> bool:
    """Whether etcd's authentication is on."""
    try:
        await anonymous.range(KeyRange.of_key(subject.probe), keys_only=True)
    except (Unauthenticated, PermissionDenied):
        return True
    tls = subject.settings.tls
    if tls is None or tls.cert is None:
        return False
    # A client certificate may name a user; then a read proves nothing.
    try:
        return await anonymous.auth_enabled()
    except (Unauthenticated, PermissionDenied):
        return True
    except InvalidRequest:
        return False


async def _try(subject: Subject, etcd: EtcdClient, *, guarded: bool) -> Access:
    access = Access()
    denied: list[Finding] = []
    roles: tuple[str, ...] = ()
    permissions: list[Permission] | None = None
    if guarded and subject.user is not None:
        roles, permissions = await _permissions(etcd, subject.user)
    role = roles[0] if roles else "<role>"
    names = {
        "role": role,
        "prefix": as_text(subject.watched_prefix),
        "own": as_text(subject.own_prefix),
    }
    try:
        # etcd checks the permission for the complete range.
        read = await etcd.range(subject.keys, limit=1, keys_only=True)
        access.reads, access.revision = True, read.revision
    except PermissionDenied as error:
        seen = _denied(subject, permissions, PermissionType.READ, str(error))
        denied.append(NO_READ.found(seen, **names))
    writes = False
    try:
        await _try_to_write(etcd, subject.probe)
    except PermissionDenied as error:
        seen = _denied(subject, permissions, PermissionType.WRITE, str(error))
        denied.append(NO_WRITE.found(seen, **names))
    else:
        # That was one key; the roles have the rest.
        lacking = (
            []
            if _ROOT in roles or permissions is None
            else missing(subject.keys, permissions, PermissionType.WRITE)
        )
        writes = not lacking
        if lacking:
            seen = f"user {subject.user} may not write {_ranges(lacking)}"
            denied.append(NO_WRITE.found(seen, **names))
    own_reads = own_writes = False
    try:
        await etcd.range(KeyRange.of_prefix(subject.own_prefix), limit=1, keys_only=True)
        own_reads = True
        await _try_to_write(etcd, subject.own_prefix + b"doctor")
        own_writes = True
    except PermissionDenied as error:
        denied.append(NO_OWN_KEYS.found(str(error), **names))
    allowed = needs.Allowed(access.reads, writes, own_reads, own_writes)
    if commands := needs.describe(allowed):
        denied.append(needs.DENIED.found(commands, **names))
    access.findings += denied
    if not guarded:
        access.findings += _judge_open(subject)
    else:
        wide = _ROOT in roles or any(_is_everything(each) for each in permissions or ())
        seen = f"user {subject.user} has the roles {', '.join(roles) or 'none'}"
        if subject.user is None:
            seen = "etcd knows us by our certificate"
        if wide:
            access.findings.append(TOO_WIDE.found(seen, **names))
        if not denied:
            access.findings.append(PERMITTED.found(f"{seen}, and may run every command"))
    return access


def _judge_open(subject: Subject) -> Iterator[Finding]:
    if subject.user is not None:
        yield UNUSED_USER.found(f"user {subject.user} is named; authentication is off")
    local = all(_is_loopback(endpoint.host) for endpoint in subject.settings.endpoints)
    tls = subject.settings.tls
    if local or (tls is not None and tls.cert is not None):
        yield PERMITTED.found("authentication is off: everything is permitted")
    else:
        yield OPEN_TO_ALL.found("authentication is off")


async def _try_to_write(etcd: EtcdClient, key: bytes) -> None:
    never = Compare(key, CompareTarget.VERSION, CompareResult.LESS, 0)
    # Without space etcd does not check permissions; `check_alarms` reports that.
    with suppress(NoSpace):
        await etcd.txn(Txn([never], [Put(key, b"")]))


async def _permissions(
    etcd: EtcdClient, user: str
) -> tuple[tuple[str, ...], list[Permission] | None]:
    """Our roles and their permissions; None if we may not read them."""
    try:
        roles = await etcd.user_roles(user)
        return roles, [each for role in roles for each in await etcd.role_permissions(role)]
    except (PermissionDenied, InvalidRequest):
        return (), None


def missing(
    keys: KeyRange, permissions: Iterable[Permission], needed: PermissionType
) -> list[KeyRange]:
    """The parts of ``keys`` without the needed permission."""
    allowed = sorted(
        (each.start, _end(each))
        for each in permissions
        if each.type in (needed, PermissionType.READWRITE)
    )
    gaps = []
    covered = keys.start
    for start, end in allowed:
        if start > covered:
            gaps.append(KeyRange(covered, min(start, keys.end)))
        covered = max(covered, end)
        if covered >= keys.end:
            break
    if covered < keys.end:
        gaps.append(KeyRange(covered, keys.end))
    return [gap for gap in gaps if gap.start < gap.end]


# Above every key: etcd's keys are not longer than a request.
_LAST = b"\xff" * 64


def _end(permission: Permission) -> bytes:
    if not permission.end:
        return permission.start + b"\0"
    return _LAST if permission.end == b"\0" else permission.end


def _is_everything(permission: Permission) -> bool:
    return permission.start in (b"", b"\0") and permission.end == b"\0"


def _denied(
    subject: Subject, permissions: list[Permission] | None, needed: PermissionType, error: str
) -> str:
    verb = "read" if needed is PermissionType.READ else "write"
    who = f"user {subject.user}" if subject.user else "we"
    if permissions is None:
        return f"{who} may not {verb} below {as_text(subject.watched_prefix)}: {error}"
    lacking = missing(subject.keys, permissions, needed)
    return f"{who} may not {verb} {_ranges(lacking) or as_text(subject.watched_prefix)}"


def _ranges(ranges: Iterable[KeyRange]) -> str:
    return ", ".join(f"[{as_text(each.start)}, {as_text(each.end)})" for each in ranges)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
