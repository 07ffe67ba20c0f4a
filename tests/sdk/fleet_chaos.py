"""Kills each part of a fleet once while a program runs, and checks the attempts."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import NamedTuple

import trio

from etcd_actions.etcd import ConnectionSettings, open_connection
from etcd_actions.etcd.api import Etcd
from etcd_actions.etcd.endpoints import parse_endpoints
from tests.cli.command import Running
from tests.sdk.fleet import MACHINES, RUN, Fleet, Outcome, Program
from tests.sdk.service import free_port, kill
from tests.support.attempt_oracle import attempt_problems
from tests.support.ray_cluster import RayCluster
from tests.support.waiting import eventually, eventually_holds

_ENDS_WITHIN = 1800.0
_EVERY = 0.1


class Ray(NamedTuple):
    """A Ray cluster, and the interpreter of its environment."""

    cluster: RayCluster
    python: Path


async def run_program(fleet: Fleet, program: Program, ray: Ray | None = None) -> Outcome:
    """Run the program to its end while each part is killed once; the outcome has the problems.

    In this order: the process of a worker, the service, etcd's leader, the link of a machine for
    longer than its claims last, and a machine with all of its processes. In that time Ray's head.

    Args:
        fleet: The machines.
        program: The program.
        ray: Runs the program's jobs; needed if it has some.
    """
    endpoints = parse_endpoints(fleet.cluster.endpoints)
    with ExitStack() as stack:
        async with open_connection(ConnectionSettings(endpoints=endpoints)) as etcd:
            story = _Story(fleet, program, stack, ray)
            await story.play(etcd)
            return await story.outcome(etcd)


class _Story:
    def __init__(self, fleet: Fleet, program: Program, stack: ExitStack, ray: Ray | None) -> None:
        self._ray = ray
        self._fleet = fleet
        self._program = program
        self._stack = stack
        self._workers: dict[str, Running] = {}
        self._seconds = 0.0

    async def play(self, etcd: Etcd) -> None:
        """Run the program, with all faults, to its end."""
        fleet, port = self._fleet, free_port()
        if self._ray is not None:
            # On a busy machine it gives up, so nothing else starts at the same time.
            await self._ray.cluster.start()
        service = self._stack.enter_context(fleet.service(port))
        await service.logged("serving")
        for name in MACHINES:
            self._start_worker(name)
        if self._ray is not None:
            worker = fleet.ray_worker(*self._ray)
            self._workers["ray"] = self._stack.enter_context(worker)
        for each in self._workers.values():
            await each.logged("working")
        fleet.begin()
        inputs = self._program.inputs(fleet.notes)
        await fleet.submit("fleet.py", "tree", *inputs, run=RUN)
        async with trio.open_nursery() as nursery:
            if self._ray is not None:
                nursery.start_soon(self._kill_head, self._ray.cluster)
            await self._break_each(etcd, service, port)
        await fleet.until_ended(etcd, _ENDS_WITHIN)
        self._seconds = fleet.seconds

    async def _break_each(self, etcd: Etcd, service: Running, port: int) -> None:
        fleet = self._fleet
        await self._started(0.1)
        fleet.note("worker of machine a killed")
        kill(self._workers["a"])
        await self._started(0.2)
        fleet.note("service killed, and started again")
        kill(service)
        self._stack.enter_context(fleet.service(port))
        await self._started(0.3)
        self._start_worker("a")
        member = fleet.cluster.leader()
        fleet.note("leader of etcd killed")
        member.kill()
        await self._started(0.4)
        fleet.note("member of etcd started again")
        fleet.cluster.start_member(member, wait=False)
        await self._started(0.5)
        await self._part(etcd, "b")
        await self._started(0.7)
        fleet.note("machine c lost, with all processes")
        fleet.machines["c"].kill_all()
        await self._started(0.8)
        self._start_worker("c")

    async def _kill_head(self, cluster: RayCluster) -> None:
        """Kill Ray's head once a third of the jobs have started, and start it again."""
        third = self._program.on_ray / 3
        await eventually(lambda: self._fleet.jobs_started() >= third, within=600, every=_EVERY)
        self._fleet.note("head of Ray killed")
        await trio.to_thread.run_sync(cluster.kill, "head")
        await self._workers["ray"].logged("ray_unavailable")
        await cluster.start()
        self._fleet.note("head of Ray started again")

    async def outcome(self, etcd: Etcd) -> Outcome:
        """What it showed, with all problems."""
        fleet, program = self._fleet, self._program
        states, starts = await fleet.states(etcd), fleet.all_starts()
        roots = [each for each in states if each.action == "a0"]
        value = fleet.value(roots[-1].output_uri)
        problems = attempt_problems(states, starts)
        if value != program.result:
            problems.append(f"result: {value}, not {program.result}")
        actions = len({each.action for each in states})
        if actions != program.tasks:
            problems.append(f"tasks: {actions}, not {program.tasks}")
        return Outcome(
            program=program,
            seconds=self._seconds,
            value=value,
            states=states,
            starts=starts,
            etcd=str(fleet.cluster.binary.version),
            faults=fleet.faults,
            logged=fleet.logged(),
            problems=problems,
        )

    async def _started(self, part: float) -> None:
        await self._fleet.started(part * self._program.tasks)

    def _start_worker(self, name: str) -> None:
        self._workers[name] = self._stack.enter_context(self._fleet.worker(name))

    async def _part(self, etcd: Etcd, name: str) -> None:
        """Take a machine's link down until its claims have expired; its attempts end before."""
        fleet, worker = self._fleet, self._workers[name]
        await eventually_holds(partial(fleet.has_claims, etcd, worker.pid), every=_EVERY)
        fleet.note(f"link of machine {name} down")
        fleet.machines[name].disconnect()
        await worker.logged("claims_not_renewed_in_time")
        await eventually_holds(partial(fleet.has_no_claims, etcd, worker.pid), every=_EVERY)
        fleet.note(f"link of machine {name} up")
        fleet.machines[name].connect()
        await worker.logged("lease_lost")
