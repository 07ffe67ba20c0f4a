"""A task with an input of each type that the SDK converts from a text."""

from dataclasses import dataclass
from datetime import date, datetime, timedelta
from enum import Enum
from typing import Literal

import flyte
from flyte.io import Dir, File
from pydantic import BaseModel

env = flyte.TaskEnvironment(name="typed")


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


@dataclass
class Point:
    x: int
    y: float
    at: datetime | None = None


@dataclass
class Line:
    begin: Point
    end: Point
    colour: Colour = Colour.RED


class Model(BaseModel):
    name: str
    tags: list[str] = []


@env.task
async def main(
    line: Line,
    models: list[Model],
    table: dict[str, Model],
    maybe: int | None,
    none: int | None,
    text: str | None,
    colours: list[Colour],
    times: list[datetime],
    files: list[File],
    file: File,
    folder: Dir,
    kind: Literal["a", "b"],
    Upper: int,
    at: datetime,
    day: date,
    wait: timedelta,
    flag: bool,
    number: float = 2.5,
    on: bool = True,
) -> tuple[Line, list[Model], list[str]]:
    def read(each: File) -> str:
        with each.open_sync() as opened:
            return bytes(opened.read()).decode()

    names = sorted([each.name async for each in folder.walk()])
    said = [
        f"{sorted(table)} {maybe} {none} {text}",
        f"{[each.name for each in colours]} {[each.isoformat() for each in times]} {kind}",
        f"{[read(each) for each in files]} {read(file)} {names}",
        f"{Upper} {at.isoformat()} {day} {wait.total_seconds():g} {flag} {number} {on}",
    ]
    return line, models, said
