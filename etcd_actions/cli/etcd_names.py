"""Looks up names of runs and actions in etcd; see :mod:`etcd_actions.cli.names`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress

from etcd_actions.cli.keys import find_namespaces
from etcd_actions.cli.names import Name
from etcd_actions.codecs import codec_of
from etcd_actions.errors import DecodeError, PermissionDenied
from etcd_actions.etcd import Etcd
from etcd_actions.etcd.api import KeyRange, KeyValue
from etcd_actions.model import (
    ROOT_ACTION,
    Keyspace,
    canonical_name,
    object_key,
    parse_key,
    run_key_prefix,
    task_action_name,
)

# The most actions that are read of a run without a root; actions of other runs can be among them.
_MOST_OF_RUN = 100
# The most keys that are read for the nearest names.
_MOST_SIMILAR = 5_000


class EtcdNameLookup:
    """Implements :class:`~etcd_actions.cli.names.NameLookup`; all reads are at one revision.

    Args:
        etcd: The connection.
        prefix: The part of keys before ``<namespace>/<name>``.
        only: The only namespace; None for all.

    Attributes:
        revision: The revision of all reads; 0 before the first one.
        objects: The objects of the found actions by namespace and name.
    """

    def __init__(self, etcd: Etcd, prefix: bytes, only: str | None) -> None:
        self._etcd = etcd
        self._prefix = prefix
        self._only = only
        self._namespaces: Sequence[str] | None = None if only is None else [only]
        self._keys = Keyspace(prefix)
        self.revision = 0
        self.objects: dict[tuple[str, str], KeyValue] = {}

    async def find(self, name: Name, /) -> Sequence[Name]:
        """See :class:`~etcd_actions.cli.names.NameLookup`."""
        found: list[Name] = []
        for namespace in await self._read_namespaces():
            if name.object:
                found += await self._object(namespace, name.object)
            if name.action:
                found += await self._action(namespace, name)
            else:
                found += await self._run(namespace, name)
        if name.action and not name.project and self._only in (None, name.run):
            # RUN/ACTION can also be a namespace and the name of an object in it.
            found += await self._object(name.run, name.action)
        return found

    async def similar(self, name: Name, /) -> Sequence[str]:
        """See :class:`~etcd_actions.cli.names.NameLookup`."""
        names: list[str] = []
        for namespace in await self._read_namespaces():
            if name.action:
                run = run_key_prefix(self._prefix, namespace, name.run)
                keys = await self._names_below(run)
                names += _run_and_action(keys, name.run)
        if names:
            return names
        for namespace in await self._read_namespaces():
            below = await self._names_below(self._prefix + f"{namespace}/".encode())
            roots = [each.removesuffix(f"-{ROOT_ACTION}") for each in below]
            names += [run for run, each in zip(roots, below, strict=True) if run != each]
            with suppress(PermissionDenied):
                names += await self._names_below(self._keys.runs + f"{namespace}/".encode())
            names += below if name.object else []
        return names

    async def _read_namespaces(self) -> Sequence[str]:
        if self._namespaces is None:
            found, self.revision = await find_namespaces(
                self._etcd, self._prefix, None, self.revision
            )
            # A run whose objects have expired has only its record.
            with suppress(PermissionDenied):
                recorded, _ = await find_namespaces(
                    self._etcd, self._keys.runs, None, self.revision
                )
                found = list(dict.fromkeys([*found, *recorded]))
            self._namespaces = found
        return self._namespaces

    async def _object(self, namespace: str, name: str) -> list[Name]:
        """The action whose object has this name, decodable or not."""
        found = await self._stored(namespace, name)
        if found is not None:
            return [found]
        run = name.removesuffix(f"-{ROOT_ACTION}")
        if run in ("", name):
            return []
        # The object has expired.
        recorded = await self._record(namespace, Name(run=run))
        return [each._replace(action=ROOT_ACTION) for each in recorded]

    async def _action(self, namespace: str, name: Name) -> list[Name]:
        stored = await self._stored(namespace, task_action_name(name.run, name.action))
        if stored is not None and (not stored.run or _is_meant(stored, name)):
            return [stored]
        if canonical_name(name.run, name.action) == ROOT_ACTION:
            # Its object has expired.
            return [
                each._replace(action=ROOT_ACTION) for each in await self._record(namespace, name)
            ]
        return []

    async def _run(self, namespace: str, name: Name) -> list[Name]:
        run = name.run or name.object
        meant = name._replace(run=run, object="")
        root = await self._stored(namespace, task_action_name(run, ROOT_ACTION))
        if root is not None and root.run and _is_meant(root, meant):
            return [root.of_run()]
        if recorded := await self._record(namespace, meant):
            return recorded
        below = KeyRange.of_prefix(run_key_prefix(self._prefix, namespace, run))
        found = (self._decoded(each) for each in await self._range(below, _MOST_OF_RUN))
        others = (each for each in found if each.run and _is_meant(each, meant))
        return list(dict.fromkeys(each.of_run() for each in others))

    async def _record(self, namespace: str, name: Name) -> list[Name]:
        from etcd_actions.runs.run_record import decode_record  # noqa: PLC0415 (rarely needed)

        key = object_key(self._keys.runs, namespace, name.run)
        for kv in await self._own_range(key):
            try:
                record = decode_record(kv.value)
            except DecodeError:
                continue
            found = Name(record.project, record.domain, record.name, namespace=namespace)
            return [found] if _is_meant(found, name._replace(action="")) else []
        return []

    async def _stored(self, namespace: str, name: str) -> Name | None:
        """The action of an object, or of a trace."""
        key = KeyRange.of_key(object_key(self._prefix, namespace, name))
        found = await self._range(key)
        if not found:
            found = await self._own_range(object_key(self._keys.traces, namespace, name))
        for kv in found:
            self.objects[namespace, name] = kv
            return self._decoded(kv)
        return None

    def _decoded(self, kv: KeyValue) -> Name:
        prefix = self._prefix if kv.key.startswith(self._prefix) else self._keys.traces
        namespace, name = parse_key(prefix, kv.key)
        try:
            action = codec_of(kv.value).summarize(kv.value).action_id
        except DecodeError as error:
            return Name(namespace=namespace, object=name, reason=error.reason)
        return Name(
            action.project,
            action.domain,
            action.run,
            canonical_name(action.run, action.name),
            namespace=namespace,
            object=name,
        )

    async def _range(self, keys: KeyRange, limit: int = 1) -> Sequence[KeyValue]:
        page = await self._etcd.range(keys, revision=self.revision, limit=limit)
        self.revision = self.revision or page.revision
        return page.kvs

    async def _own_range(self, key: bytes) -> Sequence[KeyValue]:
        """Read one of this package's own keys; nothing if the user may only read objects."""
        try:
            return await self._range(KeyRange.of_key(key))
        except PermissionDenied:
            return ()

    async def _names_below(self, prefix: bytes) -> list[str]:
        page = await self._etcd.range(
            KeyRange.of_prefix(prefix),
            revision=self.revision,
            limit=_MOST_SIMILAR,
            keys_only=True,
        )
        return list(_object_names(page.kvs))


def _run_and_action(names: Iterable[str], run: str) -> Iterable[str]:
    """RUN/ACTION of the objects of a run, by the objects' names."""
    return (f"{run}/{each.removeprefix(f'{run}-')}" for each in names)


def _object_names(kvs: Iterable[KeyValue]) -> Iterable[str]:
    for kv in kvs:
        yield kv.key.rpartition(b"/")[2].decode(errors="backslashreplace")


def _is_meant(found: Name, name: Name) -> bool:
    """Whether a found action has the parts that a name has."""
    return (
        name.project in ("", found.project)
        and name.domain in ("", found.domain)
        and name.run in ("", found.run)
        and (not name.action or canonical_name(found.run, name.action) == found.action)
    )
