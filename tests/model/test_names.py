"""Names, keys and output paths."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etcd_actions.errors import DecodeError
from etcd_actions.model import (
    DEFAULT_KEY_PREFIX,
    ActionId,
    fnv1a32,
    object_key,
    output_uri,
    parse_key,
    run_key_prefix,
    shard,
    task_action_name,
)
from tests.data.captured import EVENTS
from tests.support.table import table

parts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/"), min_size=1)


@pytest.mark.parametrize(
    ("run", "action", "name"),
    [("r1", "a0", "r1-a0"), ("r1", "r1", "r1-a0"), ("r1", "c1", "r1-c1"), ("a-b", "c", "a-b-c")],
)
def test_object_names(run: str, action: str, name: str) -> None:
    """Verify Flyte's naming, with both spellings of the root."""
    assert task_action_name(run, action) == name
    assert ActionId("p", "d", run, action).object_name == name


def test_action_ids_are_keys() -> None:
    """Verify that equal identities are one dictionary key, and that each part counts."""
    first = ActionId("p", "d", "r", "a", "o")
    assert {first: 1}[ActionId("p", "d", "r", "a", "o")] == 1
    others = [
        ActionId("x", "d", "r", "a", "o"),
        ActionId("p", "x", "r", "a", "o"),
        ActionId("p", "d", "x", "a", "o"),
        ActionId("p", "d", "r", "x", "o"),
        ActionId("p", "d", "r", "a"),
    ]
    assert len({first, *others}) == 6


@given(parts, parts)
def test_keys_round_trip(namespace: str, name: str) -> None:
    """Verify that a key parses to what it was built of."""
    key = object_key(DEFAULT_KEY_PREFIX, namespace, name)
    assert parse_key(DEFAULT_KEY_PREFIX, key) == (namespace, name)


@table("key", sorted({event.key for event in EVENTS}), ids=bytes.decode)
def test_captured_keys(key: bytes) -> None:
    """Verify that the keys of a real API server parse and are built again."""
    namespace, name = parse_key(DEFAULT_KEY_PREFIX, key)
    assert namespace == "flyte"
    assert object_key(DEFAULT_KEY_PREFIX, namespace, name) == key
    run, _, _ = name.partition("-")
    assert key.startswith(run_key_prefix(DEFAULT_KEY_PREFIX, namespace, run))


@table(
    "rest",
    [b"", b"flyte", b"flyte/", b"/name", b"flyte/a/b", b"flyte//name", b"flyte/\xff", b"\xff/a"],
)
def test_foreign_keys(rest: bytes) -> None:
    """Verify that keys of another shape are refused, and named in the error."""
    with pytest.raises(DecodeError, match="the key is not") as caught:
        parse_key(b"/p/", b"/p/" + rest)
    assert caught.value.key == b"/p/" + rest


def test_key_of_another_prefix() -> None:
    """Verify that a key outside of the prefix is refused."""
    with pytest.raises(DecodeError, match="not below /p/"):
        parse_key(b"/p/", b"/q/flyte/name")


@pytest.mark.parametrize(("namespace", "name"), [("", "n"), ("ns", ""), ("a/b", "n"), ("a", "b/c")])
def test_impossible_keys(namespace: str, name: str) -> None:
    """Verify that no key is built that would parse to something else."""
    with pytest.raises(ValueError, match="no key"):
        object_key(b"/p/", namespace, name)


@pytest.mark.parametrize(
    ("data", "state"),
    [(b"", 0x811C9DC5), (b"a", 0xE40C292C), (b"foobar", 0xBF9CF968)],
)
def test_fnv(data: bytes, state: int) -> None:
    """Verify the hash with vectors of its authors."""
    assert fnv1a32(data) == state


def test_fnv_parities_of_flyte() -> None:
    """Verify the hash with what Flyte's own test of its shards says."""
    assert (fnv1a32(b"abc") % 2, fnv1a32(b"xyz") % 2) == (1, 0)


@pytest.mark.parametrize(
    ("namespace", "name", "expected"),
    [
        ("flyte", "my-action-abc", "hu"),
        ("flyte", "run1-a0", "vy"),
        ("flyte", "rabc123-train", "x5"),
        ("ns-a", "action-1", "97"),
    ],
)
def test_shards(namespace: str, name: str, expected: str) -> None:
    """Verify the shard with reference vectors."""
    assert shard(namespace, name) == expected


@table(
    ("base", "expected"),
    [
        ("s3://bucket/p/d/r", "s3://bucket/vy/p/d/r/a0/1"),
        ("s3://bucket//p/d/r//", "s3://bucket/vy/p/d/r/a0/1"),
        ("s3://bucket/p//d", "s3://bucket/vy/p//d/a0/1"),
        ("s3://bucket", "s3://bucket/vy/a0/1"),
        ("s3://bucket/", "s3://bucket/vy/a0/1"),
        ("S3://Bucket/P", "s3://Bucket/vy/P/a0/1"),
        ("gs://user:pw@host:80/p", "gs://user:pw@host:80/vy/p/a0/1"),
        ("http://[::1]:9000/p", "http://[::1]:9000/vy/p/a0/1"),
        ("file:///data/run", "file:///data/run/a0/1"),
        ("file:/data/run", "file:/vy/data/run/a0/1"),
        ("s3:", "s3:///vy/a0/1"),
        ("/data/run", "/data/run/a0/1"),
        ("data/run", "/vy/data/run/a0/1"),
        ("//host/run", "//host/vy/run/a0/1"),
        ("///data", "/vy/data/a0/1"),
        ("s3://b/p?x=1#f", "s3://b/vy/p/a0/1?x=1#f"),
        ("s3://b/p?", "s3://b/vy/p/a0/1?"),
        ("s3://b/p#", "s3://b/vy/p/a0/1"),
        ("s3://b/a b", "s3://b/vy/a%20b/a0/1"),
        ("s3://b/a%20b%2Fc", "s3://b/vy/a%20b/c/a0/1"),
        ("s3://b/é", "s3://b/vy/%C3%A9/a0/1"),
        ("s3://b/a(1)=2", "s3://b/vy/a%281%29=2/a0/1"),
        ("opaque:data", "opaque:data"),
        ("", ""),
        ("s3://b/%zz", ""),
        ("s3://b/p#%z", ""),
        ("s3://b\n/p", ""),
        ("s3://b c/p", ""),
        ("s3://b:port/p", ""),
        ("http://[::1/p", ""),
        ("s3://us er@b/p", ""),
        ("://b/p", ""),
        ("1s3:b/p", ""),
    ],
)
def test_output_uri(base: str, expected: str) -> None:
    """Verify the path for bases of every shape, read as Go's net/url reads them."""
    assert output_uri("flyte", "run1-a0", base, "a0", 1) == expected


@pytest.mark.parametrize(("attempt", "last"), [(0, "1"), (1, "1"), (2, "2"), (17, "17")])
def test_output_uri_of_attempts(attempt: int, last: str) -> None:
    """Verify that each attempt has a directory, and none counts as the first."""
    uri = output_uri("flyte", "run1-a0", "s3://b", "a0", attempt)
    assert uri == f"s3://b/vy/a0/{last}"


def test_output_uri_escapes_the_action() -> None:
    """Verify that an action's name goes into the path as Go would write it."""
    assert output_uri("flyte", "run1-a0", "s3://b", "my-action", 1).endswith("/my-action/1")
    assert output_uri("flyte", "run1-a0", "s3://b", "a ?é", 1).endswith("/a%20%3F%C3%A9/1")


@given(st.text(max_size=40))
def test_output_uri_takes_anything(base: str) -> None:
    """Verify that no base raises, and that what is computed ends like a directory of ours."""
    uri = output_uri("flyte", "run1-a0", base, "a0", 1)
    assert uri == "" or "/a0/1" in uri or ":" in base
