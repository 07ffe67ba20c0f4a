"""The stored objects of actions, from etcd or through the service."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Any, Protocol

from etcd_actions.cli.etcd_names import EtcdNameLookup
from etcd_actions.cli.keys import run_ranges
from etcd_actions.cli.names import Name, NameLookup
from etcd_actions.cli.options import CommonOptions
from etcd_actions.config.settings import SERVICE
from etcd_actions.etcd import Etcd
from etcd_actions.etcd.api import KeyRange, KeyValue, RangeResult
from etcd_actions.etcd.paging import open_pages, read_pages
from etcd_actions.model import ROOT_ACTION, task_action_name
from etcd_actions.storage.watched_keys import watched_keys

if TYPE_CHECKING:
    from etcd_actions.cli.service_client import ServiceClient


class StoredObjects(Protocol):
    """Reads stored objects; made by :func:`open_stored_objects`.

    Its methods raise the errors of :mod:`etcd_actions.errors` about etcd, or about the service.

    Attributes:
        prefix: The part of keys before ``<namespace>/<name>``. The service reports it: with one, it
            is empty before the first read.
        revision: The revision of the reads; 0 before the first one.
        names: Looks up names.
    """

    prefix: bytes

    @property
    def revision(self) -> int:
        """See the attributes."""

    @property
    def names(self) -> NameLookup:
        """See the attributes."""

    def pages(self, run: Name) -> AbstractAsyncContextManager[AsyncIterator[RangeResult]]:
        """The objects of a run in the order of their keys; those of other runs can be among them.

        Args:
            run: The run; empty fields match all.
        """

    async def object(self, name: Name) -> KeyValue | None:
        """The object of an action that `names` found, or of a run's root; None if it is gone."""


@asynccontextmanager
async def open_stored_objects(common: CommonOptions) -> AsyncIterator[StoredObjects]:
    """Open the objects of the service if the settings name one, else of etcd."""
    if common.config[SERVICE] is None:
        async with common.open_etcd() as etcd:
            yield _EtcdObjects(etcd, common.prefix, common.namespace)
        return
    from etcd_actions.cli.backends import open_service  # noqa: PLC0415 (slow to import)

    async with open_service(common) as service:
        yield _ServiceObjects(service)


class _EtcdObjects:
    def __init__(self, etcd: Etcd, prefix: bytes, only: str | None) -> None:
        self._etcd = etcd
        self._only = only
        self._names = EtcdNameLookup(etcd, prefix, only)
        self.prefix = prefix

    @property
    def revision(self) -> int:
        return self._names.revision

    @property
    def names(self) -> NameLookup:
        return self._names

    @asynccontextmanager
    async def pages(self, run: Name) -> AsyncIterator[AsyncIterator[RangeResult]]:
        if run.run:
            ranges, revision = await run_ranges(self._etcd, self.prefix, self._only, run.run)
        else:
            ranges, revision = [watched_keys(self.prefix, self._only)[0]], 0
        if len(ranges) == 1:
            async with (
                open_pages(self._etcd, ranges[0], revision=revision) as pages,
                aclosing(self._noted(pages)) as noted,
            ):
                yield noted
            return
        # Without a namespace there is no range to read, but a revision to report.
        ranges = ranges or [KeyRange.of_key(self.prefix)]
        async with (
            aclosing(self._chained(ranges, revision)) as chained,
            aclosing(self._noted(chained)) as noted,
        ):
            yield noted

    async def _chained(
        self, ranges: Iterable[KeyRange], revision: int
    ) -> AsyncGenerator[RangeResult]:
        for keys in ranges:
            async with aclosing(read_pages(self._etcd, keys, revision=revision)) as pages:
                async for page in pages:
                    yield page

    async def _noted(self, pages: AsyncIterator[RangeResult]) -> AsyncGenerator[RangeResult]:
        async for page in pages:
            self._names.revision = page.revision
            yield page

    async def object(self, name: Name) -> KeyValue | None:
        stored = name.object or task_action_name(name.run, ROOT_ACTION)
        return self._names.objects.get((name.namespace, stored))


class _ServiceObjects:
    def __init__(self, service: ServiceClient) -> None:
        self._service = service
        self.prefix = b""
        self._revision = 0

    @property
    def revision(self) -> int:
        return self._revision

    @property
    def names(self) -> NameLookup:
        return self._service.names

    @asynccontextmanager
    async def pages(self, run: Name) -> AsyncIterator[AsyncIterator[RangeResult]]:
        from etcd_actions.cli.calls import OPERATIONS  # noqa: PLC0415 (slow to import)
        from etcd_actions.server._pb import etcd_actions_operations_pb2 as pb  # noqa: PLC0415

        request = pb.ListObjectsRequest(
            project=run.project, domain=run.domain, run=run.run, name=run.action
        )
        kind = pb.ListObjectsResponse
        async with (
            self._service.stream(OPERATIONS, "ListObjects", request, kind) as responses,
            aclosing(self._noted(responses)) as noted,
        ):
            yield noted

    async def _noted(self, responses: AsyncIterator[Any]) -> AsyncGenerator[RangeResult]:
        async for response in responses:
            self.prefix, self._revision = response.prefix, response.revision
            kvs = [_key_value(each) for each in response.objects]
            yield RangeResult(kvs, False, len(kvs), response.revision, 0)

    async def object(self, name: Name) -> KeyValue | None:
        async with self.pages(name._replace(action=name.action or ROOT_ACTION)) as pages:
            found = [kv async for page in pages for kv in page.kvs]
        return found[0] if found else None


def _key_value(each: Any) -> KeyValue:
    return KeyValue(
        each.key, each.value, each.create_revision, each.mod_revision, each.version, each.lease
    )
