"""The names of runs and actions through the service; see :mod:`etcd_actions.cli.names`.

The service lists the runs that have records. A full path is not verified: the call that uses it
returns the error.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Final

from etcd_actions.cli.calls import Calls
from etcd_actions.cli.names import Name
from etcd_actions.errors import NotFound, NotServed, ServiceRefused
from etcd_actions.model import ROOT_ACTION, canonical_name, task_action_name

if TYPE_CHECKING:
    from etcd_actions.cli.reader import Reader

# The most runs that are read, and the most dashes at which the name of an object is divided.
_MOST_RUNS: Final = 1_000
_MOST_NAMES: Final = 50


class ServiceNameLookup:
    """Implements :class:`~etcd_actions.cli.names.NameLookup`.

    Args:
        calls: The service.
    """

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    @cached_property
    def _reader(self) -> Reader:
        from etcd_actions.cli.reader import Reader  # noqa: PLC0415 (slow to import)

        return Reader(self._calls, self)

    async def find(self, name: Name, /) -> Sequence[Name]:
        """See :class:`~etcd_actions.cli.names.NameLookup`."""
        if name.project:
            return [name]
        if name.run:
            runs = await self._runs([name.run])
            if not name.action:
                return runs
            found = [each for run in runs for each in await self._in_run(run, name.action)]
            return found or await self._in_namespace(name.run, name.action)
        return await self._object(name.object)

    async def _in_namespace(self, namespace: str, text: str) -> list[Name]:
        """The actions that the name of an object means in one namespace."""
        from etcd_actions.cli.calls import OPERATIONS  # noqa: PLC0415 (slow to import)
        from etcd_actions.server._pb import etcd_actions_operations_pb2 as pb  # noqa: PLC0415

        found = []
        for each in await self._object(text):
            request = pb.ListObjectsRequest(
                project=each.project, domain=each.domain, run=each.run, name=each.action
            )
            kind = pb.ListObjectsResponse
            try:
                async with self._calls.stream(OPERATIONS, "ListObjects", request, kind) as pages:
                    keys = [kv.key async for page in pages for kv in page.objects]
            except (NotServed, ServiceRefused):
                # Another service does not send keys, which have the namespace.
                return []
            if any(key.endswith(f"/{namespace}/{text}".encode()) for key in keys):
                found.append(each)
        return found

    async def _object(self, text: str) -> list[Name]:
        """The runs of this name, and the actions whose object has it."""
        ends = [at for at, character in enumerate(text) if character == "-" and at]
        starts = {text[:at]: text[at + 1 :] for at in ends[:_MOST_NAMES] if text[at + 1 :]}
        found: list[Name] = []
        for run in await self._runs([text, *starts]):
            if run.run == text:
                found.append(run)
            else:
                found += await self._in_run(run, starts[run.run])
        return found

    async def similar(self, name: Name, /) -> Sequence[str]:
        """See :class:`~etcd_actions.cli.names.NameLookup`."""
        if name.action:
            runs = [name] if name.project else await self._runs([name.run])
            names = [f"{run.run}/{each}" for run in runs for each in await self._actions(run)]
            if names:
                return names
        names = [run.run for run in await self._runs(())]
        if name.object:
            names += [task_action_name(run, ROOT_ACTION) for run in names]
        return names

    async def _runs(self, names: Collection[str]) -> list[Name]:
        """The newest runs, or those that have one of the names."""
        from flyteidl2.workflow import run_service_pb2 as pb  # noqa: PLC0415 (slow to import)

        request = pb.ListRunsRequest(org="")
        request.request.limit = _MOST_RUNS
        if names:
            filter_ = request.request.filters.add(field="name", values=names)
            filter_.function = filter_.VALUE_IN
        found = [run.action.id.run for run in (await self._reader.runs(request)).runs]
        return [Name(run.project, run.domain, run.name) for run in found]

    async def _in_run(self, run: Name, action: str) -> list[Name]:
        found = run._replace(action=canonical_name(run.run, action))
        try:
            await self._reader.action(found)
        except NotFound:
            return []
        return [found]

    async def _actions(self, run: Name) -> list[str]:
        from flyteidl2.common.list_pb2 import ListRequest  # noqa: PLC0415 (slow to import)

        try:
            page = await self._reader.page_of_actions(run, ListRequest(limit=_MOST_RUNS))
        except NotFound:
            return []
        return [each.id.name for each in page.actions]
