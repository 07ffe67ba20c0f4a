"""The JSON codec on values of any shape."""

import copy
import json
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from etcd_actions.codecs import Codec, codec_of
from etcd_actions.codecs import json as codec
from etcd_actions.codecs.json import Number
from etcd_actions.errors import DecodeError
from etcd_actions.model import ActionObject, ObjectMeta, TaskActionSpec
from tests.codecs.labels import add_label
from tests.support.table import table

SPEC = '"spec":{"actionName":"a1","domain":"d","project":"p","runName":"r"}'
HEAD = '{"apiVersion":"flyte.org/v1","kind":"TaskAction","metadata":'
SMALLEST = f'{HEAD}{{"name":"r-a1"}},{SPEC}}}\n'.encode()

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
# What a naive search for the labels would fall for.
tricky = st.sampled_from(
    ["labels", '"labels":{', "metadata", '\\"labels\\":{}', "}", '"', "\\", "<&>", "\u2028", ""]
)
names = texts | tricky
# Those that Go writes as an integer of another value (1e16 and up), or as -0, are apart.
floats = st.floats(-1e15, 1e15).map(lambda number: number + 0.0)
numbers = st.integers() | floats
trees = st.recursive(
    st.none() | st.booleans() | numbers | names,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4),
    max_leaves=20,
)
objects = st.dictionaries(names, trees, max_size=5)


@st.composite
def task_actions(draw: st.DrawFn) -> dict[str, Any]:
    """Objects with a TaskAction's head and anything else in any place."""
    tree = draw(objects)
    metadata = draw(objects)
    labels = draw(st.none() | st.just({}) | st.dictionaries(names, names, max_size=5))
    metadata.pop("labels", None)
    if labels is not None or draw(st.booleans()):
        metadata["labels"] = labels
    if draw(st.booleans()):
        metadata["name"] = "r-a1"
    return {**tree, "apiVersion": "flyte.org/v1", "kind": "TaskAction", "metadata": metadata}


def with_label(value: bytes, label: str, text: str) -> bytes:
    """Set a label the long way."""
    tree = codec.decode_tree(value)
    labels = tree["metadata"].get("labels") or {}
    tree["metadata"]["labels"] = {**labels, label: text}
    return codec.encode_tree(tree)


# --- trees ----------------------------------------------------------------------------


@given(objects)
def test_trees_round_trip(tree: dict[str, Any]) -> None:
    """Verify that any tree reads back equal, and that encoding is stable."""
    encoded = codec.encode_tree(tree)
    decoded = codec.decode_tree(encoded)
    assert decoded == tree == json.loads(encoded)
    assert codec.encode_tree(decoded) == encoded


@given(objects)
def test_encoding_is_canonical(tree: dict[str, Any]) -> None:
    """Verify sorted keys, no spaces, one newline at the end, and nothing HTML would read."""
    encoded = codec.encode_tree(tree)
    assert encoded.endswith(b"\n")
    assert encoded.count(b"\n") == 1
    assert not {"<", ">", "&", "\u2028", "\u2029"} & set(encoded.decode())

    def check(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key.encode() for key, _ in pairs]
        assert keys == sorted(keys)
        return dict(pairs)

    json.loads(encoded, object_pairs_hook=check)


@table(
    ("text", "encoded"),
    [
        ("<>&", rb"\u003c\u003e\u0026"),
        ("\u2028\u2029", rb"\u2028\u2029"),
        ("\b\f\n\r\t", rb"\b\f\n\r\t"),
        ("\0\x01\x0b\x1f", rb"\u0000\u0001\u000b\u001f"),
        ("\x7f", b"\x7f"),
        ('"\\/', rb"\"\\/"),
        ("é€😀\ufffd", "é€😀\ufffd".encode()),
        (r"\u003c", rb"\\u003c"),
    ],
    ids=["html", "separators", "short", "control", "delete", "quotes", "raw", "escaped"],
)
def test_strings_are_escaped_as_go_does(text: str, encoded: bytes) -> None:
    """Verify the escapes of Go's encoding/json, in keys and in values."""
    assert codec.encode_tree({text: text}) == b'{"' + encoded + b'":"' + encoded + b'"}\n'


@table(
    ("number", "text"),
    [
        (1.0, "1"),
        (-0.0, "-0"),
        (1.5, "1.5"),
        (1e16, "10000000000000000"),
        (1e20, "100000000000000000000"),
        (1e21, "1e+21"),
        (1e-6, "0.000001"),
        (1.5e-7, "1.5e-7"),
        (1e-10, "1e-10"),
        (5e-324, "5e-324"),
        (-123.456, "-123.456"),
    ],
)
def test_floats_are_formatted_as_go_does(number: float, text: str) -> None:
    """Verify the format of Go's encoding/json for numbers of our own."""
    assert codec.encode_tree({"x": [number]}) == f'{{"x":[{text}]}}\n'.encode()


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_floats_read_back(number: float) -> None:
    """Verify that any float is written with the digits that it needs."""
    text = codec.encode_tree({"x": number}).decode().removeprefix('{"x":').removesuffix("}\n")
    assert float(text) == number


@table(
    "text",
    ["1.0", "1e5", "1E+05", "-0.0", "0.10", "1E400", "3.141592653589793238462643", "1" * 300],
)
def test_numbers_keep_their_text(text: str) -> None:
    """Verify that numbers beyond a float's or a machine's reach stay as they were."""
    value = f'{{"x":{text}}}\n'.encode()
    assert codec.encode_tree(codec.decode_tree(value)) == value


def test_number_survives_copies() -> None:
    """Verify that a number keeps its text through copy and pickle."""
    number = Number("1.50")
    for same in (copy.deepcopy(number), pickle.loads(pickle.dumps(number))):
        assert (same, same.text) == (1.5, "1.50")


@table(
    ("item", "error"),
    [
        (b"bytes", TypeError),
        ({1, 2}, TypeError),
        ((1, 2), TypeError),
        ({1: "key"}, TypeError),
        (float("nan"), ValueError),
        (float("inf"), ValueError),
        ("\ud800", ValueError),
    ],
    ids=["bytes", "set", "tuple", "key", "nan", "inf", "surrogate"],
)
def test_what_is_no_json_is_refused(item: object, error: type[Exception]) -> None:
    """Verify that nothing is silently written as something else."""
    with pytest.raises(error):
        codec.encode_tree({"x": [item]})


def test_what_nobody_changed_is_not_looked_into_again() -> None:
    """Parts that are named, not those that are equal to them; all else is checked."""
    tree = codec.decode_tree(b'{"a":{"b":[1.50,{"c":null}]},"d":{"e":[2]}}')
    a, d = tree["a"], tree["d"]
    assert codec.encode_tree(tree, unchanged=(a, d, None)) == codec.encode_tree(tree)
    a["b"][1]["c"] = (1,)
    # A tuple would be written as a list: that is what the check is for.
    assert b'"c":[1]' in codec.encode_tree(tree, unchanged=(a, d))
    for unchanged in ((), (d,), ({"b": [1.5, {"c": (1,)}]},)):
        with pytest.raises(TypeError, match="tuple is not a JSON value"):
            codec.encode_tree(tree, unchanged=unchanged)


def test_no_object_is_refused() -> None:
    """Verify that only objects are encoded."""
    with pytest.raises(TypeError, match="list is not a JSON object"):
        codec.encode_tree([])  # type: ignore[arg-type]


def test_deep_trees_are_refused() -> None:
    """Verify that depth ends in an error of the right kind, on both ways."""
    tree: dict[str, Any] = {}
    for _ in range(100_000):
        tree = {"x": tree}
    with pytest.raises(ValueError, match="too deeply"):
        codec.encode_tree(tree)
    while tree:  # A destructor that recursed would end the interpreter.
        tree = tree["x"]


# --- the typed view -------------------------------------------------------------------


def refused(function: Callable[..., object], value: bytes) -> DecodeError | None:
    try:
        function(value, key=b"k", revision=7)
    except DecodeError as error:
        return error
    return None


@given(st.binary() | st.binary().map(lambda tail: SMALLEST[:60] + tail))
@example(b"")
@example(b"[" * 100_000)
@example(b'{"a":' * 100_000)
@example(b'{"a":' + b"9" * 100_000 + b"}")
@example(SMALLEST.replace(b'"r-a1"', b"9" * 100_000))
def test_no_bytes_crash(value: bytes) -> None:
    """Verify that bytes are decoded or refused, with nothing else raised."""
    for function in (codec.decode, codec.decode_tree):
        refusal = refused(function, value)
        if refusal is not None:
            assert (refusal.key, refusal.revision) == (b"k", 7)
            assert refusal.reason


@given(task_actions())
def test_no_object_crashes(tree: dict[str, Any]) -> None:
    """Verify that an object of the right kind is refused unless it has what Flyte demands."""
    spec = tree.get("spec")
    complete = isinstance(spec, dict) and spec.keys() >= {"project", "domain", "runName"}
    refusal = refused(codec.decode, codec.encode_tree(tree))
    assert complete or refusal is not None


def mutated(old: str, new: str) -> bytes:
    assert old.encode() in SMALLEST
    return SMALLEST.replace(old.encode(), new.encode())


@table(
    ("value", "reason"),
    [
        (b"", "the value is empty"),
        (b"k8s\0\n\x0f", "not JSON but Kubernetes' protobuf"),
        (b"k8s:enc:aescbc:v1:key1:\x8b", "not JSON but encrypted at rest"),
        (b"\xd9\xd9\xf7\xa4", "not JSON but CBOR"),
        (b"\x0a\x0bnot json", "malformed"),
        (b"\xff\xfe", "malformed"),
        (SMALLEST[:-20], "truncated"),
        (SMALLEST + b"{}", "trailing characters"),
        (b"[]", "Expected `object`, got `array`"),
        (b"null", "Expected `object`, got `null`"),
        (b"{}", "missing required field `apiVersion`"),
        (mutated("TaskAction", "Pod"), r"a Pod of flyte\.org/v1, and no TaskAction"),
        (mutated("flyte.org/v1", "apps/v1"), r"a TaskAction of apps/v1, and no TaskAction of fly"),
        (mutated(',"runName":"r"', ""), r"`runName` - at `\$\.spec`"),
        (mutated('"project":"p"', '"project":null'), r"`project` - at `\$\.spec`"),
        (mutated('"runName":"r"', '"runName":1'), r"got `int` - at `\$\.spec\.runName`"),
        (mutated('"name":"r-a1"', '"labels":{}'), r"`name` - at `\$\.metadata`"),
        (mutated('"name":', '"labels":{"x":1},"name":'), r"at `\$\.metadata\.labels\[\.\.\.\]`"),
        (mutated("\n", ""), None),
        (SMALLEST.replace(b"r-a1", b"r-\xff"), "not UTF-8"),
        (SMALLEST.replace(b'"name"', b'"later":"\xff","name"'), "not UTF-8"),
        (SMALLEST.replace(b'"name"', b'"la\xffter":"","name"'), "not UTF-8"),
        (mutated("}}", '},"status":{"attempts":-1}}'), r"at `\$\.status\.attempts`"),
        (mutated("}}", '},"status":{"attempts":4294967296}}'), r"at `\$\.status\.attempts`"),
        (mutated("}}", '},"status":{"cacheStatus":2147483648}}'), r"\$\.status\.cacheStatus`"),
        (mutated("}}", '},"status":{"conditions":{}}}'), r"at `\$\.status\.conditions`"),
    ],
)
def test_reasons_of_refusal(value: bytes, reason: str | None) -> None:
    """Verify that the error says what is wrong, and where; None stands for no error."""
    if reason is None:
        assert codec.decode(value).metadata.name == "r-a1"
        return
    with pytest.raises(DecodeError, match=reason) as caught:
        codec.decode(value, key=b"/registry/x", revision=12)
    assert str(caught.value).startswith("/registry/x at revision 12: ")


def test_nulls_count_as_absent() -> None:
    """Verify that null is read like Go reads it, which writes it for a time that is unset."""
    action = codec.decode(
        f'{HEAD}{{"creationTimestamp":null,"labels":null,"name":"n","ownerReferences":null}},'
        f'{SPEC[:-1]},"parentActionName":null}},"status":{{"conditions":null}}}}'.encode()
    )
    assert action.metadata == ObjectMeta(name="n")
    assert action.parent == ""
    assert action.status.conditions == ()


def test_unknown_fields_are_passed_over() -> None:
    """Verify that fields of later versions are no error in the view and stay in the tree."""
    value = mutated('"name":', '"later":{"x":[1,null]},"name":')
    assert codec.decode(value).metadata.name == "r-a1"
    assert codec.encode_tree(codec.decode_tree(value)) == value


def test_create_in_canonical_form() -> None:
    """Verify the bytes of a new object: sorted, escaped, without what is not set."""
    action = ActionObject.new(
        ObjectMeta("r-a1", labels={"z": "1", "a": "2"}),
        TaskActionSpec("p", "d", "r", "a1", input_uri="s3://b/<&>", interruptible=False),
    )
    assert (
        codec.encode(action)
        == (
            HEAD
            + r'{"labels":{"a":"2","z":"1"},"name":"r-a1"},"spec":{"actionName":"a1","domain":"d",'
            r'"inputUri":"s3://b/\u003c\u0026\u003e","interruptible":false,"project":"p",'
            '"runName":"r"}}\n'
        ).encode()
    )


def test_codec_of_json() -> None:
    """Verify that JSON values, and values that nobody claims, go to the JSON codec."""
    found: Codec = codec_of(SMALLEST)
    assert found.name == "json"
    with pytest.raises(DecodeError, match="empty"):
        codec_of(b"").decode(b"")


# --- the label ------------------------------------------------------------------------


@given(task_actions(), names, names)
def test_label_equals_the_tree_route(tree: dict[str, Any], label: str, text: str) -> None:
    """Verify add_label on canonical documents against the long way, and that it is idempotent."""
    value = codec.encode_tree(tree)
    labelled = add_label(codec, value, label, text)
    if (tree["metadata"].get("labels") or {}).get(label) == text:
        assert labelled is value
    else:
        assert labelled == with_label(value, label, text)
    assert add_label(codec, labelled, label, text) is labelled


@given(task_actions(), names, names, st.sampled_from([None, 1]), st.booleans())
def test_label_loses_nothing_of_other_forms(
    tree: dict[str, Any], label: str, text: str, indent: int | None, ascii_only: bool
) -> None:
    """Verify that spaces, another order or other escapes do not lead the label astray."""
    value = json.dumps(tree, indent=indent, ensure_ascii=ascii_only).encode()
    expected = codec.decode_tree(with_label(value, label, text))
    labelled = add_label(codec, value, label, text)
    if labelled is value:
        assert tree["metadata"]["labels"][label] == text
    else:
        assert codec.decode_tree(labelled) == expected


@given(task_actions(), names, names, st.binary(max_size=3), st.integers(min_value=0))
def test_label_on_damaged_bytes(
    tree: dict[str, Any], label: str, text: str, damage: bytes, at: int
) -> None:
    """Verify that damaged bytes are labelled without a loss, or refused."""
    value = codec.encode_tree(tree)
    at %= len(value)
    value = value[:at] + damage + value[at + len(damage) :]
    try:
        before = codec.decode_tree(value)
    except DecodeError:
        return
    try:
        after = codec.decode_tree(add_label(codec, value, label, text))
    except DecodeError:
        assert not isinstance(before.get("metadata"), dict) or not isinstance(
            before["metadata"].get("labels") or {}, dict
        )
        return
    before["metadata"]["labels"] = {**(before["metadata"].get("labels") or {}), label: text}
    assert after == before


@table(
    ("metadata", "labelled"),
    [
        ('{"name":"n"}', '{"labels":{"l":"v"},"name":"n"}'),
        ('{"labels":{},"name":"n"}', '{"labels":{"l":"v"},"name":"n"}'),
        ('{"labels":null,"name":"n"}', '{"labels":{"l":"v"},"name":"n"}'),
        ('{"labels":{"a":"1","z":"2"}}', '{"labels":{"a":"1","l":"v","z":"2"}}'),
        ('{"labels":{"l":"old"}}', '{"labels":{"l":"v"}}'),
        ("{}", '{"labels":{"l":"v"}}'),
        ('{"annotations":{}}', '{"annotations":{},"labels":{"l":"v"}}'),
        (
            '{"annotations":{"labels":"x"},"labels":{"a":"1"},"name":"n"}',
            '{"annotations":{"labels":"x"},"labels":{"a":"1","l":"v"},"name":"n"}',
        ),
        (
            r'{"annotations":{"x":"\"labels\":{}"},"name":"n"}',
            r'{"annotations":{"x":"\"labels\":{}"},"labels":{"l":"v"},"name":"n"}',
        ),
        # A key twice: the last one counts, and is the one that is written.
        ('{"labels":{"a":"1"},"labels":{"b":"2"}}', '{"labels":{"b":"2","l":"v"}}'),
        ('{"labels":{"a":"1"},"labels":{"a":"1"}}', '{"labels":{"a":"1","l":"v"}}'),
        ('{"name":"x"},"metadata":{"name":"n"}', '{"labels":{"l":"v"},"name":"n"}'),
        ('{"name":"n"},"metadata":{"name":"n"}', '{"labels":{"l":"v"},"name":"n"}'),
        ('{"labels":{"a":1}}', '{"labels":{"a":1,"l":"v"}}'),
    ],
)
def test_label_in_its_place(metadata: str, labelled: str) -> None:
    """Verify where the label goes, and what a look-alike of the labels does not change."""
    value = f"{HEAD}{metadata},{SPEC}}}\n".encode()
    assert add_label(codec, value, "l", "v") == f"{HEAD}{labelled},{SPEC}}}\n".encode()


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"{}", "metadata: not an object"),
        (b'{"metadata":[]}', "metadata: not an object"),
        (b'{"metadata":{"labels":[]}}', "metadata.labels: not an object"),
        (f'{HEAD}{{"labels":7}}}}'.encode(), "metadata.labels: not an object"),
        (b"", "empty"),
        (SMALLEST[:-5], "truncated"),
    ],
)
def test_label_is_refused(value: bytes, reason: str) -> None:
    """Verify that a value without a place for labels is refused with key and revision."""
    with pytest.raises(DecodeError, match=reason) as caught:
        add_label(codec, value, "l", "v", key=b"k", revision=3)
    assert (caught.value.key, caught.value.revision) == (b"k", 3)
