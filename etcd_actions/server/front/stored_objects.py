"""Reads objects as they are stored, for the commands: a method of our own next to Flyte's."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import aclosing

import msgspec
import trio

from etcd_actions.client import ActionsClient
from etcd_actions.codecs import codec_of
from etcd_actions.errors import DecodeError, InvalidArgument
from etcd_actions.etcd.api import KeyRange, KeyValue
from etcd_actions.model import (
    ActionId,
    canonical_name,
    object_key,
    run_key_prefix,
    task_action_name,
)
from etcd_actions.server._pb import etcd_actions_operations_pb2 as pb
from etcd_actions.server.caller import CALLER
from etcd_actions.server.streams import Streams

# Bytes of a page of objects.
_PAGE_BYTES = 1024 * 1024


class StoredObjects:
    """The method of the service that returns stored objects.

    Args:
        client: Reads the objects.
        streams: The open streams.
        keepalive: Seconds after which a stream sends a message without objects.
    """

    descriptor = pb.DESCRIPTOR.services_by_name["Operations"]

    def __init__(self, client: ActionsClient, streams: Streams, keepalive: float) -> None:
        self._client = client
        self._streams = streams
        self._keepalive = keepalive

    async def list_objects(
        self, request: pb.ListObjectsRequest
    ) -> AsyncIterator[pb.ListObjectsResponse]:
        """The objects of the client's projects, page by page.

        The first message may have none, and so may one after pages of other projects.
        """
        due = -math.inf
        with self._streams.open() as stream:
            pages = self._client.store.pages(self._range(request), page_bytes=_PAGE_BYTES)
            async with aclosing(pages):
                async for page in pages:
                    if stream.has_ended:
                        return
                    objects = [
                        pb.StoredObject(**msgspec.structs.asdict(kv))
                        for kv in page.kvs
                        if _is_meant(kv, request)
                    ]
                    if objects or trio.current_time() >= due:
                        due = trio.current_time() + self._keepalive
                        yield pb.ListObjectsResponse(
                            revision=page.revision,
                            prefix=self._client.keys.prefix,
                            objects=objects,
                        )

    def _range(self, request: pb.ListObjectsRequest) -> KeyRange:
        """The keys to read: of one action or run, of its namespace, or all."""
        keys = self._client.keys
        for field in ("project", "domain", "run", "name"):
            if "/" in getattr(request, field):
                raise InvalidArgument(field, "it has a slash, which no name has")
        if request.name and not request.run:
            raise InvalidArgument("name", "it needs a run")
        if keys.namespace is None and request.project and request.domain:
            keys = keys.of(ActionId(request.project, request.domain, "", ""))
        if keys.namespace is None or not request.run:
            return KeyRange.of_prefix(keys.below(keys.prefix))
        if request.name:
            name = task_action_name(request.run, request.name)
            return KeyRange.of_key(object_key(keys.prefix, keys.namespace, name))
        return KeyRange.of_prefix(run_key_prefix(keys.prefix, keys.namespace, request.run))


def _is_meant(kv: KeyValue, request: pb.ListObjectsRequest) -> bool:
    """Whether the client requests an object, and may read it."""
    caller = CALLER.get()
    try:
        action = codec_of(kv.value).summarize(kv.value).action_id
    except DecodeError:
        # It may be of any project.
        return caller.projects is None and not (request.project or request.domain)
    return (
        caller.may_use(action.project)
        and request.project in ("", action.project)
        and request.domain in ("", action.domain)
        and request.run in ("", action.run)
        and canonical_name(action.run, request.name)
        in ("", canonical_name(action.run, action.name))
    )
