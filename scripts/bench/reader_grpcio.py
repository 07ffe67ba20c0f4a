"""The bare reader: grpcio's sync stub, which receives, parses etcd's message and counts.

It decodes no object and routes nothing: the floor under all readers that use grpcio.
"""

from __future__ import annotations

import queue
from collections.abc import Iterator

import grpc

from etcd_actions.etcd._pb import etcd_actions_rpc_pb2 as pb
from scripts.bench.recorder import Recorder, Task, serve

_OPTIONS = (("grpc.enable_http_proxy", 0), ("grpc.max_receive_message_length", -1))


def read(task: Task, recorder: Recorder) -> None:
    """Watch, or list page by page."""
    recorder.opening()
    channel = grpc.insecure_channel(task.target, options=_OPTIONS)
    if task.mode == "list":
        _list(channel, task, recorder)
    else:
        _watch(channel, task, recorder)


def _watch(channel: grpc.Channel, task: Task, recorder: Recorder) -> None:
    requests: queue.SimpleQueue[pb.WatchRequest] = queue.SimpleQueue()
    requests.put(
        pb.WatchRequest(
            create_request=pb.WatchCreateRequest(
                key=task.prefix.encode(),
                range_end=task.range_end,
                start_revision=task.revision,
                fragment=True,
            )
        )
    )
    watch = channel.stream_stream(
        "/etcdserverpb.Watch/Watch",
        request_serializer=pb.WatchRequest.SerializeToString,
        response_deserializer=pb.WatchResponse.FromString,
    )
    responses: Iterator[pb.WatchResponse] = watch(iter(requests.get, None))
    for response in responses:
        if response.created:
            recorder.watching.set()
        for event in response.events:
            kv = event.kv
            recorder.event(kv.key, kv.mod_revision, kv.value)


def _list(channel: grpc.Channel, task: Task, recorder: Recorder) -> None:
    get = channel.unary_unary(
        "/etcdserverpb.KV/Range",
        request_serializer=pb.RangeRequest.SerializeToString,
        response_deserializer=pb.RangeResponse.FromString,
    )
    request = pb.RangeRequest(key=task.prefix.encode(), range_end=task.range_end, limit=task.page)
    more = True
    while more:
        response: pb.RangeResponse = get(request)
        for kv in response.kvs:
            # Copies the value, as any use of it does.
            if kv.value:
                recorder.listed()
        more = response.more
        request.revision = response.header.revision
        request.key = response.kvs[-1].key + b"\0"


if __name__ == "__main__":
    serve(read)
