"""What one seed stands for: the world, and what happens in it and when, as text.

A plan is drawn from an integer, written as lines, and read again from them, so what a seed
found can be repeated, changed by hand, and made smaller. The same plan need not give the same
interleaving: processes and etcd take the time that they take.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass

from tests.schedules.more import more_faults, more_writes
from tests.schedules.steps import LENGTH, PHASES, Step

__all__ = ["LENGTH", "PHASES", "Plan", "Step", "draw"]

_SHARDED = 2
"""The rest of a seed that has shards, divided by three."""
_LETTERS = "0123456789abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class Plan:
    """One schedule.

    Attributes:
        seed: What it was drawn from.
        members: How many members etcd has.
        processes: How many processes of ours there are.
        shards: Into how many shards they divide the actions; 0 for one leader.
        codec: How objects are stored that they create.
        transport: How they reach etcd.
        faults: What disturbs, in the order of time.
        writes: What callers do, likewise.
        readers: Who subscribes to what, and until when.
    """

    seed: int
    members: int
    processes: int
    codec: str
    transport: str
    faults: tuple[Step, ...]
    writes: tuple[Step, ...]
    readers: tuple[Step, ...]
    shards: int = 0

    def __str__(self) -> str:
        """The whole plan, a step a line."""
        lines = [
            f"seed {self.seed}",
            f"members {self.members}",
            f"processes {self.processes}",
            f"shards {self.shards}",
            f"codec {self.codec}",
            f"transport {self.transport}",
        ]
        for kind, steps in self._steps():
            lines += [f"{kind} {step}" for step in steps]
        return "\n".join(lines) + "\n"

    @classmethod
    def parse(cls, text: str) -> Plan:
        """Read what :meth:`__str__` wrote; empty lines and those with a # do not count."""
        head: dict[str, str] = {}
        steps: dict[str, list[Step]] = {"fault": [], "write": [], "reader": []}
        for line in text.splitlines():
            if not line.strip() or line.startswith("#"):
                continue
            kind, rest = line.split(maxsplit=1)
            if kind in steps:
                steps[kind].append(Step.parse(rest))
            else:
                head[kind] = rest
        return cls(
            int(head["seed"]),
            int(head["members"]),
            int(head["processes"]),
            head["codec"],
            head["transport"],
            tuple(steps["fault"]),
            tuple(steps["write"]),
            tuple(steps["reader"]),
            int(head.get("shards", "0")),
        )

    def _steps(self) -> Iterable[tuple[str, tuple[Step, ...]]]:
        return (("fault", self.faults), ("write", self.writes), ("reader", self.readers))


def draw(seed: int) -> Plan:
    """The plan of a seed: always the same. Each third one has shards."""
    dice = random.Random(seed)
    members = dice.choice((1, 1, 3))
    processes = dice.choice((1, 2, 2, 3))
    shards, runs = 0, [f"r{number}" for number in range(dice.randint(1, 2))]
    if seed % 3 == _SHARDED:
        dice = random.Random(f"shards {seed}")
        shards, processes = dice.choice((2, 5, 16)), dice.choice((2, 3, 3, 8))
        # Names all over the shards.
        runs = [f"r{dice.choice(_LETTERS)}{number}" for number in range(dice.randint(2, 5))]
    writes, roots = _writes(dice, processes, runs)
    codec = dice.choice(("json", "json", "protobuf", "msgpack"))
    transport = dice.choice(("grpc", "grpc", "grpc", "grpc", "gateway"))
    if transport == "gateway":
        # Each watcher has a connection of its own, and a shard has three.
        shards = min(shards, 2)
    return Plan(
        seed,
        members,
        processes,
        codec,
        transport,
        _in_order([*_faults(dice, members, processes), *more_faults(seed)]),
        _in_order(more_writes(seed, processes, writes)),
        _in_order(_readers(dice, processes, roots)),
        shards,
    )


def _in_order(steps: Iterable[Step]) -> tuple[Step, ...]:
    return tuple(sorted(steps, key=lambda step: step.at))


# What disturbs, how often, and for how long at least and at most; None: it is over at once.
_OF_PROCESSES = (
    ("kill", 4, (0.0, 1.5)),
    ("stop", 3, (0.2, 1.5)),
    ("stop", 4, (3.5, 4.5)),
    ("term", 3, (0.0, 1.0)),
)
_OF_ETCD = (
    ("etcd-kill", 3, (0.0, 1.5)),
    ("etcd-term", 2, (0.0, 1.0)),
    ("etcd-stop", 3, (0.2, 2.5)),
    ("compact", 5, None),
    ("nospace", 2, (0.3, 1.5)),
    ("revoke", 4, None),
)
_OF_CLUSTERS = (("move-leader", 3, None), ("quorum", 3, (0.3, 2.5)))
_OF_WAYS = (
    ("cut", 4, None),
    ("down", 2, (0.2, 2.0)),
    ("stall", 3, (0.3, 3.0)),
    ("chunk", 1, (0.5, 3.0)),
    ("delay", 2, (0.5, 3.0)),
    ("isolate", 3, (0.5, 4.5)),
)
_OF_RUN_SERVICE = (
    ("rs-cut", 3, None),
    ("rs-mute", 2, (0.2, 2.0)),
    ("rs-stop", 3, (0.1, 1.5)),
    ("rs-hang", 3, (0.3, 2.5)),
    ("rs-slow", 3, None),
    ("rs-refuse", 6, None),
    ("rs-inband", 3, None),
    ("rs-lose", 4, None),
    ("rs-reject", 1, None),
)


def _faults(dice: random.Random, members: int, processes: int) -> list[Step]:
    kinds = [*_OF_PROCESSES, *_OF_ETCD, *_OF_WAYS, *_OF_RUN_SERVICE]
    kinds += _OF_CLUSTERS if members > 1 else ()
    weights = [weight for _, weight, _ in kinds]
    steps = []
    for what, _, lasts in dice.choices(kinds, weights, k=dice.randint(6, 14)):
        at = dice.uniform(0.3, LENGTH - 0.5)
        args = _arguments(dice, what, members, processes)
        if lasts is not None:
            args["for"] = f"{dice.uniform(*lasts):.3f}"
        steps.append(Step(round(at, 3), what, args))
    return steps


def _arguments(dice: random.Random, what: str, members: int, processes: int) -> dict[str, str]:
    # The elected one is the most interesting one.
    process = dice.choice(("leader", "leader", *map(str, range(processes))))
    member = str(dice.randrange(members))
    match what:
        case "kill" | "stop" | "term" | "isolate" | "rs-cut" | "rs-mute":
            return {"process": process}
        case "etcd-kill" | "etcd-term" | "etcd-stop":
            return {"member": member}
        case "compact":
            return {"behind": str(dice.choice((0, 0, 1, 5)))}
        case "cut":
            return {"process": process, "how": dice.choice(("reset", "close"))}
        case "down":
            return {"process": process}
        case "stall":
            way = dice.choice(("both", "to-server", "to-client"))
            return {"process": process, "way": way}
        case "chunk":
            return {"process": process, "size": str(dice.choice((1, 7, 100)))}
        case "delay":
            return {"process": process, "ms": str(dice.choice((20, 100, 300)))}
        case "rs-hang" | "rs-refuse" | "rs-inband" | "rs-lose" | "rs-reject" | "rs-slow":
            call = dice.choice(("status", "status", "status", "record"))
            times = 1 if what == "rs-reject" else dice.choice((1, 3, 10, 20))
            args = {"call": call, "times": str(times)}
            if what == "rs-refuse":
                args["code"] = dice.choice(("UNAVAILABLE", "INTERNAL", "DEADLINE_EXCEEDED"))
            if what == "rs-inband":
                args["code"] = dice.choice(("2", "5", "8", "9", "13", "14"))
            if what == "rs-slow":
                args["ms"] = dice.choice(("50", "300", "700", "1500"))
            return args
        case _:
            return {}


def _writes(
    dice: random.Random, processes: int, runs: Iterable[str]
) -> tuple[list[Step], list[str]]:
    steps: list[Step] = []
    roots = []
    for run in runs:
        began = dice.uniform(0, 0.8)
        steps += _life(dice, processes, run, "a0", "", began, ends=dice.random() < 0.4)
        roots.append(run)
        parents = ["a0"]
        for child in range(dice.randint(3, 7)):
            name = f"c{child}"
            parent = dice.choice(("a0", "a0", *parents))
            at = began + dice.uniform(0.2, LENGTH * 0.55)
            kind = "condition" if dice.random() < 0.15 else "task"
            steps += _life(dice, processes, run, name, parent, at, kind=kind)
            if kind == "task":
                parents.append(name)
    return steps, roots


def _life(
    dice: random.Random,
    processes: int,
    run: str,
    name: str,
    parent: str,
    at: float,
    *,
    kind: str = "task",
    ends: bool | None = None,
) -> list[Step]:
    """What happens to one action, one after another."""
    steps: list[Step] = []
    pace = dice.choice((0.05, 0.3, 0.8))

    def add(what: str, **more: str) -> None:
        nonlocal at
        args = {"run": run, "name": name, "via": _way(dice, processes), **more}
        steps.append(Step(round(at, 3), what, args))
        at += dice.uniform(0.01, pace)

    add("enqueue", parent=parent or "-", kind=kind)
    if kind == "condition":
        if dice.random() < 0.7:
            add("signal", value=dice.choice(("true", "false")))
    else:
        for attempt in range(1, dice.choice((1, 1, 2)) + 1):
            for phase in ("queued", "initializing", "running"):
                if phase == "running" or dice.random() < 0.3:
                    add("status", phase=phase, attempt=str(attempt))
        if not parent:
            # What is below a root ends with it.
            at = max(at, dice.uniform(0.5, 1.0) * LENGTH)
        if ends if ends is not None else dice.random() < 0.75:
            end = dice.choices(("succeeded", "failed", "timed-out"), (5, 6, 2))[0]
            add("status", phase=end, attempt=str(attempt))
    if dice.random() < 0.12:
        add("abort")
    if dice.random() < 0.06:
        add("ask-deletion")
    elif dice.random() < 0.1:
        add("delete")
        if dice.random() < 0.3:
            add("enqueue", parent=parent or "-", kind=kind)
            if kind == "task":
                add("status", phase="running", attempt="1")
                add("status", phase="failed", attempt="1")
    return steps


def _way(dice: random.Random, processes: int) -> str:
    ways = [f"{kind}:{n}" for n in range(processes) for kind in ("grpc", "connect")]
    return dice.choice((*ways, "library", "library"))


def _readers(dice: random.Random, processes: int, roots: list[str]) -> list[Step]:
    steps = []
    for number in range(dice.randint(2, 4)):
        at = dice.uniform(0, LENGTH * 0.7)
        args = {
            "reader": str(number),
            "run": dice.choice(roots),
            "name": dice.choice(("a0", "a0", "a0", "c0")),
            "via": f"{dice.choice(('grpc', 'connect'))}:{dice.randrange(processes)}",
        }
        # Half of them are there at the end; the others go, most of them to come again.
        if dice.random() < 0.5:
            args["for"] = f"{dice.uniform(0.3, 3.0):.3f}"
            args["again"] = dice.choice(("yes", "yes", "no"))
        steps.append(Step(round(at, 3), "read", args))
    return steps
