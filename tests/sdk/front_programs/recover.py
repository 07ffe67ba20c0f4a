"""A run that fails in the middle, and is recovered: what succeeded is not run again."""

import json
import sys
import time
import uuid
from pathlib import Path

import flyte
import flyte.remote
from flyte.remote import Action
from hello import connect

env = flyte.TaskEnvironment(name="recover")


def note(folder: str, what: str) -> str:
    """Leave a trace that it ran, and give what no other call gives."""
    with (Path(folder) / "ran").open("a") as file:
        file.write(f"{what}\n")
    return uuid.uuid4().hex


@flyte.trace
async def traced(folder: str) -> str:
    return note(folder, "traced")


@env.task
async def stamp(folder: str, name: str) -> str:
    return note(folder, f"stamp {name}")


@env.task
async def fragile(folder: str) -> str:
    if not (Path(folder) / "flag").exists():
        raise ValueError("not yet")
    return note(folder, "fragile")


@env.task
async def branch(folder: str) -> str:
    below = await stamp(folder, "below")
    return below + await fragile(folder)


@env.task
async def main(folder: str) -> list[str]:
    step = await traced(folder)
    approved = await (
        await flyte.new_condition.aio("approve", prompt="?", data_type=bool)
    ).wait.aio()
    return [step, str(approved), await stamp(folder, "first"), await branch(folder)]


def phases(run: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for each in Action.listall(for_run_name=run):
        name = each.task_name or "other"
        found.setdefault(name.rpartition(".")[2], []).append(each.phase.value)
    return {name: sorted(each) for name, each in found.items()}


def ran(folder: Path) -> list[str]:
    """What ran since this was asked the last time."""
    file = folder / "ran"
    lines = file.read_text().splitlines() if file.exists() else []
    file.unlink(missing_ok=True)
    return sorted(lines)


def signal(run: str) -> None:
    """Approve; what asks is there once the program has come to it."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        for each in flyte.remote.Condition.listall(run_name=run):
            if each.name == "approve":
                each.signal(True)
                return
        time.sleep(0.1)
    raise TimeoutError("approve")


def told(run: flyte.remote.Run, folder: Path) -> dict[str, object]:
    run.wait(quiet=True)
    details = run.details()
    outputs = run.outputs()[0] if run.phase.value == "succeeded" else []
    return {
        "phase": run.phase.value,
        "phases": phases(run.name),
        "ran": ran(folder),
        "outputs": outputs,
        "source": details.pb2.action.metadata.relation.related_to.name,
    }


if __name__ == "__main__":
    connect()
    folder = Path(sys.argv[3])
    run = flyte.run(main, folder=str(folder))
    signal(run.name)
    results = {"name": run.name, "failed": told(run, folder)}
    again = flyte.rerun(run.name, recover=True)
    results["still_failed"] = told(again, folder)
    (folder / "flag").touch()
    last = flyte.rerun(again.name, recover=True)
    results["recovered"] = told(last, folder)
    stamped = next(
        each.name
        for each in Action.listall(for_run_name=last.name)
        if each.task_name == "recover.stamp" and each.pb2.metadata.parent == "a0"
    )
    results["forced"] = told(
        flyte.rerun(last.name, recover=True, force_rerun_actions=[stamped]), folder
    )
    try:
        flyte.rerun("unknown", recover=True)
    except Exception as error:
        results["unknown"] = str(error)
    print(json.dumps(results))
