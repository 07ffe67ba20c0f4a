"""What is packed of an action comes out as it went in, whatever it is, and shared texts go."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from etcd_actions.follow.packing import Packing, have_one_parent, parent_of, revision_in
from etcd_actions.model import Phase, Summary, task_action_name

_texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
_names = st.sampled_from(["a0", "r1", "a-b", "ü", ""]) | _texts


@st.composite
def summaries(draw: st.DrawFn) -> Summary:
    run = draw(_names)
    return Summary(
        project=draw(st.sampled_from(["p", "q"]) | _texts),
        domain=draw(st.sampled_from(["d"]) | _texts),
        run=run,
        action=draw(_names | st.just(run)),
        org=draw(st.sampled_from(["", "o"])),
        parent=draw(st.sampled_from(["", "a0", run]) | _texts),
        uid=draw(
            st.uuids().map(str)
            | st.sampled_from(
                [
                    "",
                    "uid",
                    "A" * 32,
                    "ABCDEF01-2345-6789-abcd-0123456789ab",
                    "0123456 -2345-6789-abcd-0123456789ab",
                ]
            )
            | _texts
        ),
        phase=draw(st.sampled_from(Phase)),
        attempts=draw(st.integers(0, 2**32 - 1)),
        cache_status=draw(st.integers(-(2**31), 2**31 - 1)),
        recorded=draw(st.booleans()),
        run_output_base=draw(st.sampled_from(["", f"s3://b/{run}", f"{run}/{run}"]) | _texts),
        create_revision=draw(st.integers(0, 2**63 - 1)),
        revision=draw(st.integers(0, 2**63 - 1)),
        deleting=draw(st.booleans()),
        held=draw(st.booleans()),
        held_by_others=draw(st.booleans()),
        stray=draw(st.booleans()),
        mark=draw(st.integers(0, 2**32 - 1)),
        condition=draw(st.booleans()),
        other_version=draw(st.sampled_from(["", "flyte.org/v2"])),
        pool=draw(st.sampled_from(["", "gpu"])),
    )


@given(st.lists(st.tuples(summaries(), st.booleans()), max_size=8))
def test_what_goes_in_comes_out_and_nothing_stays(facts: list[tuple[Summary, bool]]) -> None:
    """Under its own name, and under another one, as a stray object may be."""
    packing = Packing()
    kept = []
    for summary, proper in facts:
        name = f"{summary.run}-{summary.action}".encode() if proper else b"other"
        packed = packing.pack(name, summary)
        kept.append((name, summary, packed))
    for name, summary, packed in kept:
        assert packing.unpack(name, packed) == summary
        assert revision_in(packed) == summary.revision
        is_queued = summary.phase < Phase.INITIALIZING and not summary.condition
        assert packing.queued_pool(packed) == (summary.pool if is_queued else None)
        parent = task_action_name(summary.run, summary.parent) if summary.parent else ""
        assert parent_of(name, packed) == parent.encode()
        for other_name, _, other in kept:
            if name == other_name and have_one_parent(packed, other):
                assert parent_of(name, packed) == parent_of(name, other)
    for _, _, packed in kept:
        packing.release(packed)
    assert packing._numbers == {}
    assert len(packing._free) == len(packing._texts) <= len(facts)
