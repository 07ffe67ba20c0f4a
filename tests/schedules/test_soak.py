"""The verdict of a soak: what grows is found, what is steady holds; and its picture."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from tests.schedules.soak import Sample, judge, picture, report

RATE = 300.0
STEADY = Sample(0.0, 80.0, 20.0, 15.0, 620.0, 3.0, 900.0, 0.0, 0.0, 0.0)


def samples(**growth: float) -> list[Sample]:
    """Ten minutes in which some measures grow by so much in all."""
    return [
        STEADY._replace(
            at=float(at),
            written=at * RATE,
            **{
                # It wavers, as everything does.
                name: getattr(STEADY, name) + most * at / 600 + (at % 7) / 7
                for name, most in growth.items()
            },
        )
        for at in range(1, 601)
    ]


def test_a_steady_process_holds() -> None:
    verdicts = judge(samples(rss=2.0, outbox=10.0), RATE)
    assert all(each.holds for each in verdicts), verdicts


@pytest.mark.parametrize(
    ("name", "most"),
    [("rss", 40.0), ("descriptors", 20.0), ("threads", 10.0), ("tasks", 50.0), ("outbox", 500.0)],
)
def test_what_grows_is_found(name: str, most: float) -> None:
    found = [each.name for each in judge(samples(**{name: most}), RATE) if not each.holds]
    assert found == [name]


def test_an_outbox_that_is_long_but_steady_is_found() -> None:
    late = [each._replace(outbox=5000.0) for each in samples()]
    assert [each.name for each in judge(late, RATE) if not each.holds] == ["outbox, mean"]


def test_a_load_that_was_not_reached_proves_nothing() -> None:
    slow = [each._replace(written=each.at * RATE * 0.8) for each in samples()]
    found = [each.name for each in judge(slow, RATE) if not each.holds]
    assert found == ["changes a second, and how many are lacking"]


def test_what_grew_only_at_the_beginning_holds() -> None:
    seen = [each._replace(rss=min(each.at, 200.0)) for each in samples()]
    assert all(each.holds for each in judge(seen, RATE))


def test_the_picture_is_an_svg_with_a_line_for_each_measure() -> None:
    seen = samples(rss=40.0)
    root = ET.fromstring(picture(seen, judge(seen, RATE), RATE))
    lines = [each for each in root if each.tag.endswith("polyline")]
    assert [len(each.attrib["points"].split()) for each in lines] == [600] * 6


def test_the_report_says_what_grew() -> None:
    seen = samples(rss=40.0)
    text = report(seen, judge(seen, RATE), RATE, "3.5.16")
    assert "600 s at 300 changes/s" in text
    assert "**something grew**" in text
    assert "| resident memory | 110.4 | +20.0 | 8 | GROWS |" in text
