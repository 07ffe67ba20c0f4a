"""The data of runs in a blob store."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

import trio
from flyteidl2.common.run_pb2 import OffloadedInputData

from etcd_actions.blobs import BlobStore, Deployment
from etcd_actions.model import ActionId
from etcd_actions.server.front.inputs_hash import inputs_hash

if TYPE_CHECKING:
    from flyteidl2.task.common_pb2 import Inputs
    from flyteidl2.task.task_definition_pb2 import TaskSpec


class RunBlobs:
    """Implements :class:`~etcd_actions.runs.creation.RunData` by a blob store."""

    def __init__(self, store: BlobStore, deployment: Deployment) -> None:
        self._store = store
        self._deployment = deployment

    def outputs_of(self, run: ActionId) -> str:
        """The directory of a run's outputs, unless the run names another one."""
        return self._store.native_url(f"runs/{run.project}/{run.domain}/{run.run}")

    async def keep_inputs(
        self, run: ActionId, inputs: Inputs, spec: TaskSpec
    ) -> OffloadedInputData:
        """Store the inputs in a request; the same inputs again are the same blob."""
        data = inputs.SerializeToString(deterministic=True)
        # The key has the run and the content: a request for an existing name changes no inputs.
        tag = hashlib.sha256(f"{run.run}/".encode() + data).hexdigest()[:32]
        return await self.upload(run.project, run.domain, tag, inputs, spec)

    async def upload(
        self, project: str, domain: str, tag: str, inputs: Inputs, spec: TaskSpec
    ) -> OffloadedInputData:
        """Store inputs under a tag; returns their location and hash."""
        data = inputs.SerializeToString(deterministic=True)
        key = f"inputs/{project}/{domain}/{await self._deployment.name()}/{tag}/inputs.pb"
        await self._store.put(key, _one(data), most=len(data))
        ignored = frozenset(spec.task_template.metadata.cache_ignore_input_vars)
        return OffloadedInputData(
            uri=self._store.native_url(key), inputs_hash=inputs_hash(inputs.literals, ignored)
        )


async def _one(data: bytes) -> AsyncGenerator[bytes]:
    await trio.lowlevel.checkpoint()
    yield data
