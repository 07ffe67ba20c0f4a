"""Inputs and outputs of many types."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Literal

import flyte
from hello import connect
from pydantic import BaseModel

env = flyte.TaskEnvironment(name="shapes")


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


@dataclass
class Point:
    x: int
    y: float


@dataclass
class Line:
    begin: Point
    end: Point
    name: str | None = None


class Model(BaseModel):
    name: str
    tags: list[str] = []


@env.task
async def main(
    line: Line,
    models: list[Model],
    table: dict[str, Model],
    maybe: int | None,
    colours: list[Colour],
    at: list[datetime],
    kind: Literal["a", "b"],
    wait: timedelta,
) -> tuple[Line, dict[str, Model], str]:
    said = f"{maybe} {[each.value for each in colours]} {len(at)} {kind} {wait.total_seconds():g}"
    return line, {**table, models[0].name: models[0]}, said


if __name__ == "__main__":
    connect()
    run = flyte.run(
        main,
        line=Line(Point(1, 2.5), Point(3, 4.0)),
        models=[Model(name="first", tags=["t"])],
        table={"k": Model(name="second")},
        maybe=None,
        colours=[Colour.RED, Colour.BLUE],
        at=[datetime(2026, 1, 2, tzinfo=UTC)],
        kind="b",
        wait=timedelta(seconds=90),
    )
    run.wait(quiet=True)
    line, table, said = run.outputs()
    print(json.dumps({"end": line.end.y, "keys": sorted(table), "said": said}))
