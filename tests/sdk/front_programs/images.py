"""A task whose image the builder ``remote`` makes."""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import flyte
import flyte.remote

KIND, WHEELS = (*sys.argv[3:5], "", "")[:2]
IMAGE = flyte.Image.from_debian_base(install_flyte=False, name=f"of-{KIND}")
if KIND == "apt":
    IMAGE = IMAGE.with_apt_packages("vim")
elif KIND == "wheel":
    IMAGE = IMAGE.with_pip_packages(f"made_here @ file://{WHEELS}/made_here-1.0-py3-none-any.whl")
elif KIND:
    IMAGE = IMAGE.with_pip_packages("made_here", extra_args=f"--no-index --find-links {WHEELS}")

env = flyte.TaskEnvironment(name="images", image=IMAGE)


@env.task
async def main() -> str:
    return str(importlib.import_module("made_here").VALUE)


if __name__ == "__main__":
    endpoint, project = sys.argv[1:3]
    flyte.init(
        endpoint=endpoint,
        insecure=True,
        project=project,
        domain="development",
        root_dir=Path(__file__).parent,
        image_builder="remote",
    )
    told: dict[str, Any] = {}
    try:
        run = flyte.run(main)
        run.wait(quiet=True)
        told["outputs"] = list(run.outputs())
    except Exception as error:
        told["refused"] = str(error)
    runs = [run.pb2.action.metadata for run in flyte.remote.Run.listall()]
    told["runs"] = sorted(each.task.id.name for each in runs)
    print(json.dumps(told))
