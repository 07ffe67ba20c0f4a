"""The data of runs in a store of blobs."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Final

import trio
from flyteidl2.common.run_pb2 import OffloadedInputData
from flyteidl2.task.common_pb2 import Inputs
from google.protobuf.message import DecodeError as NoMessage

from etcd_actions.blobs import BlobStore
from etcd_actions.errors import InvalidArgument
from etcd_actions.model import ActionId
from etcd_actions.quoting import quoted
from etcd_actions.server.front.inputs_hash import inputs_hash

if TYPE_CHECKING:
    from flyteidl2.task.task_definition_pb2 import TaskSpec

_MOST_INPUTS: Final = 1 << 20
"""Bytes of inputs that this process reads itself: of the build of an image."""


class RunBlobs:
    """Keeps it there; see :class:`~etcd_actions.runs.creation.RunData`.

    Args:
        store: Where it is.
    """

    def __init__(self, store: BlobStore) -> None:
        self._store = store

    def outputs_of(self, run: ActionId) -> str:
        """What the outputs of a run are below, unless it says otherwise."""
        return self._store.native_url(f"runs/{run.project}/{run.domain}/{run.run}")

    async def keep_inputs(
        self, run: ActionId, inputs: Inputs, spec: TaskSpec
    ) -> OffloadedInputData:
        """Keep inputs that came with a request; the same ones again are the same blob."""
        data = inputs.SerializeToString(deterministic=True)
        # By their content: who asks for a name that is taken changes nothing of its run.
        tag = hashlib.sha256(data).hexdigest()[:32]
        key = f"inputs/{run.project}/{run.domain}/{run.run}/{tag}/inputs.pb"
        await self._store.put(key, _one(data), most=len(data))
        ignored = frozenset(spec.task_template.metadata.cache_ignore_input_vars)
        return OffloadedInputData(
            uri=self._store.native_url(key), inputs_hash=inputs_hash(inputs.literals, ignored)
        )

    async def inputs_at(self, uri: str) -> Inputs:
        """Read inputs that were uploaded."""
        data = await self.read(uri, _MOST_INPUTS)
        try:
            return Inputs.FromString(data)
        except NoMessage:
            raise InvalidArgument("offloaded_input_data.uri", "no inputs are there") from None

    async def read(self, uri: str, most: int) -> bytes:
        """Read a blob as a whole.

        Raises:
            InvalidArgument: It is not in this store, has gone, or is larger.
            BlobError: The store cannot be read now.
        """
        key = self._store.key_of(uri)
        if key is None:
            raise InvalidArgument(
                "uri", f"{quoted(uri, 300)} is not in the blob store (--blob-dir)"
            )
        async with self._store.read(key) as blob:
            if blob is None:
                raise InvalidArgument("uri", f"there is no file {quoted(uri, 300)}: send it again")
            if blob.info.size > most:
                raise InvalidArgument(
                    "uri", f"{quoted(uri, 300)} has {blob.info.size} bytes: give at most {most}"
                )
            return b"".join([part async for part in blob.parts])

    async def exists(self, uri: str) -> bool:
        """Whether a blob is there."""
        key = self._store.key_of(uri)
        return key is not None and await self._store.stat(key) is not None


async def _one(data: bytes) -> AsyncGenerator[bytes]:
    await trio.lowlevel.checkpoint()
    yield data
