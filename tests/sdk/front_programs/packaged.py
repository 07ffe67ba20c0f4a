"""A task with a package of its own, and one that asks for what cannot be had."""

import json
import sys

import flyte
from hello import connect

BASE = flyte.Image.from_debian_base(install_flyte=False)
WHEELS = f"--no-index --find-links {sys.argv[3]}"

env = flyte.TaskEnvironment(
    name="packaged", image=BASE.with_pip_packages("made_here", extra_args=WHEELS)
)
refused = flyte.TaskEnvironment(name="refused", image=BASE.with_apt_packages("curl"))


@env.task
async def main() -> int:
    import made_here  # noqa: PLC0415

    value: int = made_here.VALUE
    return value


@refused.task
async def never() -> int:
    return 1


def refusal() -> str:
    try:
        flyte.run(never)
    except Exception as error:
        return str(error)
    return ""


if __name__ == "__main__":
    connect(image_builder="remote")
    values = []
    for _ in range(2):
        run = flyte.run(main)
        run.wait(quiet=True)
        run.raise_for_status()
        values.append(run.outputs()[0])
    print(json.dumps({"values": values, "refused": "apt" in refusal()}))
