"""Files and directories, given by path and made by tasks."""

import json
import tempfile
from pathlib import Path

import flyte
from flyte.io import Dir, File
from hello import connect

env = flyte.TaskEnvironment(name="files")


@env.task
async def upper(file: File) -> File:
    async with file.open("rb") as source:
        text = bytes(await source.read()).upper()
    made = Path(tempfile.mkdtemp()) / "upper.txt"
    made.write_bytes(text)
    return await File.from_local(str(made))


@env.task
async def count(directory: Dir) -> int:
    return len([each async for each in directory.walk()])


@env.task
async def main(file: File, directory: Dir) -> tuple[File, int]:
    return await upper(file), await count(directory)


if __name__ == "__main__":
    connect()
    here = Path(tempfile.mkdtemp())
    (here / "a.txt").write_text("some text")
    (here / "d").mkdir()
    for name in ("one", "two", "three"):
        (here / "d" / name).write_text(name)
    run = flyte.run(
        main,
        file=File.from_local_sync(str(here / "a.txt")),
        directory=Dir.from_local_sync(str(here / "d")),
    )
    run.wait(quiet=True)
    made, counted = run.outputs()
    with made.open_sync("rb") as source:
        text = bytes(source.read()).decode()
    print(json.dumps({"text": text, "count": counted}))
