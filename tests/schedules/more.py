"""What a plan has besides callers: foreign writers, time-outs, and refusals for good.

It is drawn with dice of its own, so that what a seed stood for before stays in its plan.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from tests.schedules.steps import LENGTH, Step

_ENDS = ("succeeded", "failed", "timed-out")
_GOES = ("delete", "ask-deletion")


def more_writes(seed: int, processes: int, writes: Sequence[Step]) -> list[Step]:
    """All writes, with time-outs and with what foreign writers do."""
    dice = random.Random(f"{seed} writes")
    steps = [_with_timeout(dice, step) for step in writes]
    chains: dict[tuple[str, str], list[Step]] = {}
    for step in steps:
        chains.setdefault((step.args["run"], step.args["name"]), []).append(step)
    children = [chain for (_, name), chain in chains.items() if name != "a0"]
    for chain in children:
        if dice.random() < 0.25:
            steps += _over_an_ending(dice, chain)
    tasks = [chain for chain in children if chain[0].args["kind"] == "task"]
    if tasks and dice.random() < 0.4:
        steps += _copied(dice, processes, dice.choice(tasks)[0])
    if tasks and dice.random() < 0.3:
        steps += _orphaned(dice, dice.choice(tasks))
    if dice.random() < 0.4:
        run = dice.choice(steps).args["run"]
        steps += _condition(dice, processes, run)
    return steps


def more_faults(seed: int) -> list[Step]:
    """Refusals for good, and lost rows, in some of the plans."""
    dice = random.Random(f"{seed} faults")
    steps = []
    if dice.random() < 0.3:
        for _ in range(dice.choice((1, 2))):
            args = {"call": dice.choice(("record", "status")), "times": dice.choice("123")}
            steps.append(Step(_at(dice, 0.3), "rs-reject", args))
    if dice.random() < 0.25:
        steps.append(Step(_at(dice, 1.0), "rs-forget"))
    return steps


def _at(dice: random.Random, least: float) -> float:
    return round(dice.uniform(least, LENGTH - 0.5), 3)


def _with_timeout(dice: random.Random, step: Step) -> Step:
    is_condition = step.what == "enqueue" and step.args["kind"] == "condition"
    if not is_condition or dice.random() < 0.4:
        return step
    return replace(step, args={**step.args, "timeout": dice.choice(("1", "1.5", "3"))})


def _over_an_ending(dice: random.Random, chain: Sequence[Step]) -> list[Step]:
    """An older status over the recorded ending, and then another ending."""
    if any(step.what in _GOES for step in chain) or chain[0].args["kind"] != "task":
        return []
    if not any(step.args.get("phase") in _ENDS for step in chain):
        return []
    last = chain[-1]
    named = {"run": last.args["run"], "name": last.args["name"], "via": "library"}
    at = last.at + dice.uniform(0.05, 0.5)
    mark = dice.choice(("kept", "kept", "gone"))
    back = Step(round(at, 3), "put-back", {**named, "mark": mark, "attempt": "1"})
    at += dice.uniform(0.05, 0.6)
    end = Step(round(at, 3), "put-end", {**named, "phase": dice.choice(_ENDS)})
    return [back, end] if dice.random() < 0.8 or mark == "gone" else [back]


def _copied(dice: random.Random, processes: int, source: Step) -> list[Step]:
    """A copy of an object under another name, which then goes on like any other."""
    run, name = source.args["run"], "d0"
    at = source.at + dice.uniform(0.1, 2.0)
    uid = dice.choice(("same", "none"))
    of = {"run": run, "name": name, "via": "library", "of": source.args["name"], "uid": uid}
    # Behind its source, as a child is behind its parent.
    steps = [Step(round(at, 3), "copy", {**of, "parent": source.args["name"]})]
    for phase in ("running", dice.choice(_ENDS)):
        at += dice.uniform(0.05, 0.5)
        via = f"{dice.choice(('grpc', 'connect'))}:{dice.randrange(processes)}"
        args = {"run": run, "name": name, "via": via, "phase": phase, "attempt": "1"}
        steps.append(Step(round(at, 3), "status", args))
    return steps


def _orphaned(dice: random.Random, chain: Sequence[Step]) -> list[Step]:
    if any(step.what in _GOES for step in chain):
        return []
    last = chain[-1]
    at = max(last.at + 0.05, dice.uniform(1.5, LENGTH - 0.3))
    args = {"run": last.args["run"], "name": last.args["name"], "via": "library"}
    return [Step(round(at, 3), "orphan", args)]


def _condition(dice: random.Random, processes: int, run: str) -> list[Step]:
    """One that nobody signals, or not in time."""
    at = dice.uniform(1.0, LENGTH - 1.5)
    via = f"{dice.choice(('grpc', 'connect'))}:{dice.randrange(processes)}"
    named = {"run": run, "name": "w0", "via": via}
    timeout = dice.choice(("1", "1.5", "3"))
    enqueue = {**named, "parent": "a0", "kind": "condition", "timeout": timeout}
    steps = [Step(round(at, 3), "enqueue", enqueue)]
    if dice.random() < 0.5:
        later = at + float(timeout) + dice.uniform(-0.5, 0.3)
        steps.append(Step(round(later, 3), "signal", {**named, "value": "true"}))
    return steps
