"""The JSON codec against what a Kubernetes API server wrote and answered."""

import itertools
import json
from typing import Any

import msgspec
import pytest

from etcd_actions.codecs import json as codec
from etcd_actions.model import (
    ANNOTATION_RECORDED,
    FINALIZER_RECORD,
    LABEL_TERMINAL_STATUS_RECORDED,
    Phase,
    build_action_update,
)
from tests.codecs.labels import add_label
from tests.data.captured import EVENTS, HERE, PUTS, Event
from tests.support.table import table

each_put = table("event", PUTS, ids=lambda event: event.id)

LABEL = (LABEL_TERMINAL_STATUS_RECORDED, "true")


def rest_of(tree: dict[str, Any], revision: int) -> dict[str, Any]:
    """What REST shows of a stored object: the object and its revision."""
    return {**tree, "metadata": {**tree["metadata"], "resourceVersion": str(revision)}}


def assert_shows(view: msgspec.Struct, stored: dict[str, Any], hidden: set[str]) -> None:
    """Compare a struct with the JSON object it was read from, in both directions."""
    fields = {field.encode_name: field for field in msgspec.structs.fields(view)}
    assert stored.keys() - fields.keys() <= hidden
    for name, field in fields.items():
        seen = getattr(view, field.name)
        if name not in stored:
            assert seen == field.default if field.default_factory is msgspec.NODEFAULT else not seen
        elif isinstance(seen, msgspec.Struct):
            assert_shows(seen, stored[name], {"managedFields", "resourceVersion"})
        elif isinstance(seen, tuple) and seen and isinstance(seen[0], msgspec.Struct):
            for item, stored_item in zip(seen, stored[name], strict=True):
                assert_shows(item, stored_item, set())
        else:
            assert msgspec.to_builtins(seen) == (
                tuple(stored[name]) if isinstance(seen, tuple) else stored[name]
            )


@each_put
def test_tree_is_lossless(event: Event) -> None:
    """Verify that decoding and encoding gives the API server's bytes again."""
    assert codec.encode_tree(codec.decode_tree(event.value)) == event.value


@each_put
def test_tree_and_revision_are_the_rest_answer(event: Event) -> None:
    """Verify that value and mod_revision together are what the API server told."""
    tree = codec.decode_tree(event.value)
    assert rest_of(tree, event.mod_revision) == event.rest["object"]


@each_put
def test_view_agrees_with_the_rest_answer(event: Event) -> None:
    """Verify each typed field against REST, and that no field but the named is left out."""
    assert_shows(codec.decode(event.value), event.rest["object"], set())


def test_objects_left_at_the_end_are_the_rest_list() -> None:
    """Verify that the last values of the keys that live are what a list answers."""
    last = {event.key: event for event in EVENTS}
    left = [
        rest_of(codec.decode_tree(event.value), event.mod_revision)
        for _, event in sorted(last.items())
        if event.type == "PUT"
    ]
    assert left == json.loads((HERE / "taskactions_rest.json").read_text())


def test_phases_of_the_history() -> None:
    """Verify the phases, in order and without repetitions, that each action went through."""
    seen: dict[str, list[Phase]] = {}
    for event in PUTS:
        action = codec.decode(event.value)
        seen.setdefault(action.metadata.name, []).append(action.phase)
    phases = {name: [phase for phase, _ in itertools.groupby(all_)] for name, all_ in seen.items()}
    unset, queued, init, running = (
        Phase.UNSPECIFIED,
        Phase.QUEUED,
        Phase.INITIALIZING,
        Phase.RUNNING,
    )
    succeeded = [unset, queued, init, running, Phase.SUCCEEDED]
    assert phases == {
        **{f"rh7k2m9p4qv3-{name}": succeeded for name in ("a0", "a1", "a2", "a3", "a4")},
        **{f"rh7k2m9p4qv3-{name}": succeeded for name in ("a5", "a6", "b1")},
        "rcond0000001-a0": [unset, running],
        "rcond0000001-c1": [unset, Phase.PAUSED, Phase.SUCCEEDED],
        "rabort000001-a0": [unset, running, Phase.ABORTED],
        "rabort000001-a1": [unset, running],
        "rabort000001-a2": [unset],
    }


@each_put
def test_recorded_is_the_label(event: Event) -> None:
    """Verify is_recorded against the label that REST shows, and that it follows the end."""
    action = codec.decode(event.value)
    labels = event.rest["object"]["metadata"]["labels"]
    assert action.is_recorded == (labels.get(LABEL_TERMINAL_STATUS_RECORDED) == "true")
    assert action.is_terminal or not action.is_recorded


@pytest.mark.parametrize(
    ("name", "phase"),
    [
        ("rabort000001-a0", Phase.ABORTED),
        ("rabort000001-a1", Phase.ABORTED),
        ("rabort000001-a2", Phase.ABORTED),
    ],
)
def test_deletions(name: str, phase: Phase) -> None:
    """Verify that a captured deletion, told from the previous value, ends in ABORTED."""
    (event,) = [e for e in EVENTS if e.type == "DELETE" and e.key.endswith(name.encode())]
    update = build_action_update(
        codec.decode(event.previous), key=event.key, revision=event.mod_revision, deleted=True
    )
    assert (update.name, update.phase, update.is_deleted) == (name, phase, True)
    # REST: the object before, at the revision of the delete.
    before = rest_of(codec.decode_tree(event.previous), event.mod_revision)
    assert event.rest == {"type": "DELETED", "object": before}


@each_put
def test_label_is_what_the_tree_route_gives(event: Event) -> None:
    """Verify the spliced label against decoding, setting and encoding; twice changes nothing."""
    tree = codec.decode_tree(event.value)
    tree["metadata"]["labels"][LABEL[0]] = LABEL[1]
    labelled = add_label(codec, event.value, *LABEL)
    assert labelled == codec.encode_tree(tree)
    assert add_label(codec, labelled, *LABEL) is labelled
    # On what is no ending the label says nothing.
    marked = codec.decode(labelled)
    assert marked.is_recorded is marked.is_terminal


@each_put
def test_label_on_captured_values_is_spliced(event: Event) -> None:
    """Verify that the fast path takes all that an API server writes."""
    assert codec._spliced(event.value, dict([LABEL]), {}, None) is not None


def marks() -> list[tuple[Event, Event]]:
    """Each state that the real service marked, with the marked one after it."""
    last: dict[bytes, Event] = {}
    pairs = []
    for event in PUTS:
        before = last.get(event.key)
        if codec.decode(event.value).is_recorded:
            assert before is not None
            pairs.append((before, event))
        last[event.key] = event
    return pairs


@table(("before", "after"), marks(), ids=lambda event: event.id)
def test_mark_is_the_api_servers_but_for_managed_fields(before: Event, after: Event) -> None:
    """Verify that our mark differs from the API server's only in who set which field.

    And in the annotation that says which ending it is about, without which nothing is left.
    """
    assert not codec.decode(before.value).is_recorded
    mark = {ANNOTATION_RECORDED: "SUCCEEDED/1 2 3"}
    marked = codec.release(before.value, *LABEL, FINALIZER_RECORD, annotations=mark)
    ours = codec.decode_tree(marked.value)
    theirs = codec.decode_tree(after.value)
    assert ours["metadata"]["annotations"].pop(ANNOTATION_RECORDED) == mark[ANNOTATION_RECORDED]
    if not ours["metadata"]["annotations"]:
        del ours["metadata"]["annotations"]
    assert ours["metadata"].pop("managedFields") != theirs["metadata"].pop("managedFields")
    assert codec.encode_tree(ours) == codec.encode_tree(theirs)


def test_there_are_marks() -> None:
    """Verify that the history holds the nine marks of the actions that ended."""
    assert len(marks()) == 9


@each_put
def test_new_objects_encode_as_stored(event: Event) -> None:
    """Verify that a typed object, encoded, reads back as the same object in canonical bytes."""
    action = codec.decode(event.value)
    encoded = codec.encode(action)
    assert codec.decode(encoded) == action
    assert codec.encode_tree(codec.decode_tree(encoded)) == encoded


@table("event", [e for e in PUTS if e.version == 1], ids=lambda event: event.id)
def test_created_objects_encode_to_the_api_servers_bytes(event: Event) -> None:
    """Verify that a create gives the API server's bytes, less managedFields and empty texts."""
    tree = codec.decode_tree(event.value)
    del tree["metadata"]["managedFields"]
    tree["spec"] = {name: item for name, item in tree["spec"].items() if item != ""}
    assert codec.encode(codec.decode(event.value)) == codec.encode_tree(tree)
