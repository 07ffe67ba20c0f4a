"""The parts of ``submit`` that need no SDK: leaves of JSON, and where its files are."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

from etcd_actions.cli.commands.submit_main import Refused, readable, refusal, with_declared_types
from tests.cli.command import finish
from tests.support.table import table

WHEN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


class Colour(Enum):
    RED = "red"
    BLUE = "RED"


@dataclass
class Inner:
    at: datetime | None
    number: int = 1


@dataclass
class Outer:
    inner: Inner
    colours: list[Colour]


@table(
    ("value", "kind", "expected"),
    [
        ([WHEN.isoformat()], list[datetime], [WHEN]),
        ({"a": "2026-01-02"}, dict[str, date], {"a": date(2026, 1, 2)}),
        ([1.5], list[timedelta], [timedelta(seconds=1.5)]),
        # A name comes before a value.
        (["red", "RED"], list[Colour], [Colour.RED, Colour.RED]),
        ([None, WHEN.isoformat()], list[datetime | None], [None, WHEN]),
        (
            Outer(Inner(WHEN.isoformat()), ["BLUE"]),  # type: ignore[arg-type, list-item]
            Outer,
            Outer(Inner(WHEN), [Colour.BLUE]),
        ),
        ([1, "a"], list[Any], [1, "a"]),
        ("text", int | str, "text"),
    ],
)
def test_times_and_enumerations_within_json(value: Any, kind: Any, expected: Any) -> None:
    assert with_declared_types(value, kind) == expected


def test_a_result_is_shown_as_json() -> None:
    given = {1: (Colour.RED, Inner(None)), "p": Path("/x")}
    assert readable(given) == {"1": ["RED", {"at": None, "number": 1}], "p": "/x"}


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("RunAlreadyExistsError", "taken"),
        ("SystemUnavailableError", "away"),
        ("InvalidArgumentError", "usage"),
        ("RunCreationError", "refused"),
        (None, "refused"),
    ],
)
def test_an_error_of_the_sdk_has_a_kind(code: str | None, kind: str) -> None:
    error = RuntimeError("why")
    error.code = code  # type: ignore[attr-defined]
    found = refusal(error)
    assert isinstance(found, Refused)
    assert found.kind == kind
    assert "why" in str(found)


@pytest.mark.slow
def test_what_the_sdk_cannot_do_is_said_before_it_is_started(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text("raise AssertionError")
    target = f"{program}:main"
    token = finish("submit", target, "--service", "h:1", "--service-token-file", tmp_path)
    assert token.code == 2
    assert "https://" in token.complaint
    file = tmp_path / "file"
    file.touch()
    for flag in ("--output-base", "--blob-dir"):
        place = finish("submit", target, flag, file)
        assert place.code == 2, place.err
        assert flag in place.complaint
    gone = finish("submit", target, "--endpoints", "127.0.0.1:1", "--blob-dir", tmp_path / "blobs")
    assert gone.code == 3
    assert "127.0.0.1:1" in gone.complaint
