"""Whatever somebody stores under our keys, in any form: all others go on, and it heals."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import suppress

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from etcd_actions import ActionId, open_actions_client, open_etcd
from etcd_actions.codecs import codec_named, json, magic
from etcd_actions.errors import ActionError, DecodeError, EtcdError, FailedPrecondition
from etcd_actions.etcd.api import Etcd, KeyRange
from etcd_actions.model import Keyspace
from tests.boundaries.test_boundaries import playing
from tests.data.captured import PUTS
from tests.support import flyte
from tests.support.etcd_server import EtcdServer
from tests.support.load import make_action, make_run
from tests.support.waiting import eventually

pytestmark = pytest.mark.slow

_numbers = itertools.count()
REAL = sorted({put.value for put in PUTS}, key=len)
DEPTHS = (90, 3_000, 200_000)
BODY = (
    b'{"apiVersion":"flyte.org/v1","kind":"TaskAction","metadata":{"name":"fz-a1"%s},'
    b'"spec":{"project":"p","domain":"d","runName":"fz","actionName":"a1"%s}%s}\n'
)


def nested_messages(field: int, depth: int) -> bytes:
    """A protobuf message in a message in a message."""
    heads: list[bytes] = []
    size = 0
    for _ in range(depth):
        head = bytearray([field << 3 | 2])
        left = size
        while left > 0x7F:
            head.append(left & 0x7F | 0x80)
            left >>= 7
        head.append(left)
        heads.append(bytes(head))
        size += len(head)
    return b"".join(reversed(heads))


def behind_length(message: bytes) -> bytes:
    head = bytearray()
    left = len(message)
    while left > 0x7F:
        head.append(left & 0x7F | 0x80)
        left >>= 7
    head.append(left)
    return magic.PROTOBUF + bytes(head) + message


def forms(value: bytes) -> list[bytes]:
    """The same object in each form; where it is none, itself."""
    try:
        tree = json.decode_tree(value)
        return [value, *(codec_named(name).encode_tree(tree) for name in ("msgpack", "protobuf"))]
    except (DecodeError, ValueError):
        return [value]


HUGE = b"x" * 1_000_000
ODD_FIELDS = [
    b'"x":%s' % (b"1" * 5_000),
    b'"x":-%s.5e-9' % (b"1" * 5_000),
    b'"x":NaN',
    b'"x":1e999999',
    b'"x":"\\ud800"',
    b'"x":"\xff\xfe"',
    b'"x":"%s"' % HUGE,
    *(b'"x":%s1%s' % (b"[" * depth, b"]" * depth) for depth in DEPTHS),
    *(b'"x":%s1%s' % (b'{"a":' * depth, b"}" * depth) for depth in DEPTHS),
]
ODD_METADATA = [
    b'"generation":%s' % (b"9" * 5_000),
    b'"generation":null,"annotations":null,"labels":null,"finalizers":null',
    b'"labels":{"flyte.org/terminal-status-recorded":7}',
    b'"annotations":{"a":["b"]}',
    b'"finalizers":["a","etcd-actions.io/record"],"deletionTimestamp":"x"',
    b'"deletionTimestamp":"2026-01-01T00:00:00Z","finalizers":["etcd-actions.io/record"]',
    b'"deletionTimestamp":"2026-01-01T00:00:00Z"',
    b'"uid":"%s"' % HUGE,
    b'"creationTimestamp":"9999-99-99T99:99:99Z"',
    b'"ownerReferences":[{"apiVersion":"flyte.org/v1","kind":"TaskAction","name":"/","uid":"u"}]',
    b'"ownerReferences":[{"apiVersion":"","kind":"TaskAction","name":"fz-a1","uid":"u"}]',
    b'"namespace":"a/b/\\u0000"',
]
ODD_SPEC = [
    b'"parentActionName":"a1"',
    b'"parentActionName":"/","runOutputBase":"s3://%s"' % HUGE,
    b'"runOutputBase":"file:///\\u0000%zz"',
    b'"runOutputBase":"://[::1]:x/%"',
    b'"taskTemplate":"no base64"',
    b'"taskTemplate":"//////////8="',
    b'"actionType":"trace","traceSpec":"//8="',
    b'"actionType":"condition","conditionSpec":"//8="',
    b'"actionType":"what"',
    b'"envVars":{"a":null},"shortName":"\\u0000"',
    b'"envVars":{"a":7}',
]
OVER = b',"status":{"conditions":[{"type":"Succeeded","status":"True"%s}]%s}'
ODD_STATUS = [
    OVER % (b"", b""),
    OVER % (b',"reason":7', b""),
    OVER % (b',"lastTransitionTime":"never"', b',"attempts":4294967295'),
    OVER % (b"", b',"attempts":-1'),
    OVER % (b"", b',"cacheStatus":2147483647,"signalValue":"//8="'),
    OVER % (b"", b',"errorState":{"message":"%s"}' % HUGE),
    b',"status":{"conditions":[7]}',
    b',"status":null',
]


def odd(fields: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    return st.sampled_from([b"", *(b"," + each for each in fields)])


objects = st.builds(
    lambda metadata, spec, status, other, form: form(
        forms(BODY % (metadata, spec, status + other))
    ),
    odd(ODD_METADATA),
    odd(ODD_SPEC),
    st.sampled_from([b"", *ODD_STATUS]),
    odd(ODD_FIELDS),
    st.sampled_from(
        [lambda all_: all_[0], lambda all_: all_[-1], lambda all_: all_[len(all_) // 2]]
    ),
)
damaged = st.builds(
    lambda form, at, damage, cut: form[: at % len(form)] + damage + form[at % len(form) + cut :],
    st.sampled_from([form for value in REAL[:: len(REAL) // 8] for form in forms(value)]),
    st.integers(min_value=0),
    st.binary(max_size=8),
    st.integers(0, 40),
)
# Made on first use: most runs of pytest only collect this file.
deep: st.SearchStrategy[bytes] = st.deferred(
    lambda: st.sampled_from(_deep_values()),
)


def _deep_values() -> list[bytes]:
    return [
        *(b"[" * depth for depth in DEPTHS),
        *(b'{"revision":' * min(depth, 80_000) for depth in DEPTHS),
        *(magic.MSGPACK + b"\x91" * depth for depth in DEPTHS),
        *(magic.MSGPACK + b"\x81\xa1a" * depth for depth in DEPTHS),
        *(behind_length(nested_messages(field, d)) for field in (3, 15) for d in DEPTHS),
        b'{"revision":%s,"clusterId":""}' % (b"1" * 5_000),
        b'{"x":%s,"revision":1,"clusterId":"0"}' % (b"[" * 200_000),
        b'{"revision":9223372036854775807,"clusterId":"0"}',
    ]


markers = st.sampled_from(
    [
        b'{"uid":"u","project":"p","domain":"d","run":"%s","name":"%s","org":"","reason":"",'
        b'"abortedBy":"","at":"x"%s}' % (run, name, more)
        for run, name in ((b"fz", b"a1"), (b"", b""), (b"a/b", b"/"), (b"\\u0000", HUGE[:100_000]))
        for more in (b"", b',"x":' + b"[" * 200_000)
    ]
)
letters = st.sampled_from(
    [
        b'{"objectKey":"","project":"p","domain":"d","run":"fz","action":"a4","code":3,"error":"",'
        b'"first":"","last":"","times":%s%s}' % (times, more)
        for times in (b"1", b"0", b"9" * 5_000)
        for more in (
            b"",
            b',"request":{"id":"x","at":""}',
            b',"request":{"id":"x","at":""},"state":"eJwDAAAAAAE="',
            b',"request":{"id":"x","at":""},"state":"' + b"A" * 200_000 + b'"',
            b',"phase":"NONE","x":' + b"[" * 200_000,
        )
    ]
)
garbage = st.binary(max_size=60)


class Stored(bytes):
    """A value that is shown in short."""

    def __repr__(self) -> str:
        if len(self) < 400:
            return super().__repr__()
        return f"{self[:200]!r} ... {len(self)} bytes ... {self[-100:]!r}"


values = st.one_of(
    garbage,
    st.builds(bytes.__add__, st.sampled_from([magic.PROTOBUF, magic.MSGPACK]), garbage),
    objects,
    damaged,
    deep,
    markers,
    letters,
).map(lambda value: Stored(value[:1_400_000]))
PLACES = (
    "action",
    "action",
    "action",
    "foreign",
    "trace",
    "abort",
    "claim",
    "position",
    "election",
    "letter",
)
puts = st.lists(st.tuples(st.sampled_from(PLACES), st.integers(0, 5), values), max_size=10)


def key_of(keys: Keyspace, place: str, number: int) -> bytes:
    name = b"flyte/fz-a%d" % number
    match place:
        case "action":
            return keys.prefix + name
        case "foreign":
            foreign = (b"", b"/", b"flyte", b"flyte/a/b", b"flyte/\xff\xfe", b"\xff/x")
            return keys.prefix + foreign[number]
        case "trace":
            return keys.traces + name
        case "abort":
            return keys.aborts + (name if number else b"\xff/\xfe")
        case "claim":
            return keys.claims + name
        case "position":
            return keys.checkpoint("flyte")
        case "letter":
            odd = (b"", b"x", b"actions/\xff/record/0", b"traces//status/")
            inside = b"actions/" + name + (b"/record/%d" % number)
            return keys.dead_letters + (odd[number] if number < len(odd) else inside)
        case _:
            return keys.election("flyte")


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)
@given(before=puts, during=puts)
def test_nothing_that_is_stored_stops_the_line(
    shared_etcd: EtcdServer,
    before: list[tuple[str, int, bytes]],
    during: list[tuple[str, int, bytes]],
) -> None:
    """Others are delivered, told and marked; good writes heal; nothing was unforeseen."""
    trio.run(_play, shared_etcd.endpoint, before, during)


async def _play(
    endpoint: str, before: list[tuple[str, int, bytes]], during: list[tuple[str, int, bytes]]
) -> None:
    keys = Keyspace(f"/fuzz-{next(_numbers)}/taskactions/".encode())
    good = make_run(keys.prefix, "good", 2)
    async with open_etcd(endpoint) as etcd:
        for place, number, value in before:
            if place != "election":
                # Without a lease it holds up the first election for a while, by design.
                await etcd.put(key_of(keys, place, number), value)
        async with playing(etcd, keys.prefix) as scene:
            await scene.end(good[0])
            for place, number, value in during:
                await etcd.put(key_of(keys, place, number), value)
            await scene.end(good[1])
            await eventually(lambda: all(map(scene.is_done, good)))
            assert scene.client.statistics().watching
            await _ask(etcd, keys)
            await etcd.delete(KeyRange.of_prefix(keys.prefix + b"flyte/fz-"))
            healed = [
                make_action(keys.prefix, "fz", f"a{number}", uid=f"u{number}")
                for number in range(1, 6)
            ]
            for action in healed:
                await scene.end(action)
            await eventually(lambda: all(map(scene.is_done, healed)))
            listed = {key_of(keys, "foreign", n) for n in range(6)}
            listed |= {key_of(keys, "trace", n) for n in range(6)}
            assert set(scene.client.statistics().undecodable) <= listed
            await eventually(lambda: scene.client.statistics().elected)
            assert scene.failures == {}
        for prefix in (keys.prefix, keys.own):
            await etcd.delete(KeyRange.of_prefix(prefix))


async def _ask(etcd: Etcd, keys: Keyspace) -> None:
    """Requests about what is stored get an answer, or an error of the package."""
    async with open_actions_client(etcd, prefix=keys.prefix) as client:
        for letter in await client.dead_letters():
            with suppress(FailedPrecondition):
                await client.retry_dead_letter(letter)
        for number in range(3):
            action_id = ActionId("p", "d", "fz", f"a{number}")
            for ask in (
                client.get_task_action,
                lambda id_: client.list_child_actions(id_, traces=True),
                lambda id_: client.abort_action(id_, "why"),
                lambda id_: client.enqueue(flyte.task(id_, "a1")),
            ):
                try:
                    await ask(action_id)
                except (ActionError, EtcdError, DecodeError):
                    continue
        assert client.containment.failures == {}
