"""Does what a plan says to disturb, and undoes all of it."""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from functools import partial
from typing import Protocol

import grpc
import trio

from etcd_actions.errors import EtcdError
from etcd_actions.etcd import EtcdClient
from etcd_actions.model import Keyspace
from etcd_actions.shards import ShardKeys
from tests.schedules import store_faults
from tests.schedules.observer import Observer
from tests.schedules.plan import Step
from tests.schedules.processes import Process
from tests.schedules.run_service import LoggingRunService
from tests.support.cluster import EtcdCluster
from tests.support.oracle import Entry
from tests.support.proxy import Direction, Proxy, pieces_of
from tests.support.run_service_server import Fault

_WAYS = {
    "both": (),
    "to-server": (Direction.TO_SERVER,),
    "to-client": (Direction.TO_CLIENT,),
}
_HEALED_WITHIN = 60.0


class Scene(Protocol):
    """What is disturbed."""

    keys: Keyspace
    cluster: EtcdCluster
    processes: list[Process]
    proxies: list[list[Proxy]]
    doors: list[Proxy]
    run_service: LoggingRunService
    observer: Observer
    compactions: list[int]
    began: float

    @property
    def direct(self) -> EtcdClient:
        """A connection of the tests' own."""
        ...


class Disturber:
    """Disturbs a scene.

    Attributes:
        done: How often what was really done.
    """

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._locks: defaultdict[str, trio.Lock] = defaultdict(trio.Lock)
        self.done: Counter[str] = Counter()

    async def disturb(self, step: Step) -> None:
        """Do one step of a plan at its time, and undo it."""
        await trio.sleep(max(0.0, self._scene.began + step.at - time.monotonic()))
        what = step.what
        if what.startswith("rs-"):
            done = await self._run_service(step)
        elif what in ("kill", "stop", "term"):
            done = await self._process(step)
        elif what in ("etcd-kill", "etcd-term", "etcd-stop"):
            done = await self._member(step)
        elif what in ("cut", "down", "stall", "chunk", "delay", "isolate"):
            done = await self._way(step)
        else:
            done = await self._store(step)
        self.done[what] += done

    async def heal(self) -> None:
        """Undo all that a step may have left."""
        scene = self._scene
        with trio.fail_after(_HEALED_WITHIN):
            for member in scene.cluster.members:
                if member.suspended:
                    member.resume()
                if not member.running:
                    scene.cluster.start_member(member, wait=False)
            for proxy in (each for row in (*scene.proxies, scene.doors) for each in row):
                proxy.unstall()
                proxy.delay, proxy.chunk = 0.0, None
            scene.run_service.heal()
            while not await self._disarmed():  # noqa: ASYNC110 (etcd is asked)
                await trio.sleep(0.1)
            # A member with an alarm does not count as healthy.
            await trio.to_thread.run_sync(scene.cluster.wait_healthy)

    async def _disarmed(self) -> bool:
        try:
            alarms = await self._scene.direct.alarms()
        except EtcdError:
            return False
        if not alarms:
            return True
        for member in self._scene.cluster.members:
            await trio.to_thread.run_sync(partial(store_faults.set_alarm, member, active=False))
        return False

    def _target(self, step: Step) -> int:
        """The number of the process that a step is about."""
        wanted = step.args["process"]
        if wanted != "leader":
            return int(wanted)
        found = self._leaders()
        pid = found[0].value.split(b"/")[1] if found else b""
        for process in self._scene.processes:
            if str(process.pid).encode() == pid:
                return process.number
        return 0

    def _leaders(self) -> list[Entry]:
        """The key of the leader; with shards those of their owners."""
        observer, keys = self._scene.observer, self._scene.keys
        owners = observer.present(ShardKeys(keys, None).owners)
        return observer.present(keys.election(None)) or sorted(owners, key=lambda each: each.key)

    async def _process(self, step: Step) -> bool:
        process = self._scene.processes[self._target(step)]
        async with process.lock:
            process.look()
            if process.life.code is not None:
                return False
            match step.what:
                case "kill":
                    await process.kill()
                    await trio.sleep(step.lasts)
                    process.start()
                case "term":
                    await process.term()
                    await trio.sleep(step.lasts)
                    process.start()
                case _:
                    await process.pause(step.lasts)
        return True

    async def _member(self, step: Step) -> bool:
        cluster = self._scene.cluster
        member = cluster.members[int(step.args["member"])]
        async with self._locks[member.name]:
            if step.what == "etcd-stop":
                member.suspend()
                await trio.sleep(step.lasts)
                member.resume()
            else:
                end = member.kill if step.what == "etcd-kill" else member.stop
                await trio.to_thread.run_sync(end)
                await trio.sleep(step.lasts)
                cluster.start_member(member, wait=False)
        return True

    async def _way(self, step: Step) -> bool:
        target = self._target(step)
        proxies = self._scene.proxies[target]
        args = step.args
        async with self._locks[f"way {target}"]:
            match step.what:
                case "cut":
                    for proxy in proxies:
                        proxy.cut(reset=args["how"] == "reset")
                case "down":
                    for proxy in proxies:
                        await proxy.go_down()
                    await trio.sleep(step.lasts)
                    for proxy in proxies:
                        await proxy.come_up()
                case "chunk":
                    for proxy in proxies:
                        proxy.chunk = pieces_of(int(args["size"]))
                    await trio.sleep(step.lasts)
                    for proxy in proxies:
                        proxy.chunk = None
                case "delay":
                    for proxy in proxies:
                        proxy.delay = int(args["ms"]) / 1000
                    await trio.sleep(step.lasts)
                    for proxy in proxies:
                        proxy.delay = 0.0
                case _:
                    for proxy in proxies:
                        proxy.stall(*_WAYS[args.get("way", "both")])
                    await trio.sleep(step.lasts)
                    for proxy in proxies:
                        proxy.unstall()
        return True

    async def _store(self, step: Step) -> bool:
        scene = self._scene
        match step.what:
            case "compact":
                revision = scene.observer.revision - int(step.args["behind"])
                done = await store_faults.compact(scene.direct, revision)
                if done:
                    scene.compactions.append(revision)
                return done
            case "revoke":
                leaders = self._leaders()
                key = leaders[0].key if leaders else scene.keys.election(None)
                return await store_faults.revoke(scene.direct, key, scene.cluster)
            case "move-leader":
                return await store_faults.move_leader(scene.cluster)
            case "quorum":
                return await self._lose_quorum(step)
            case "nospace":
                return await self._want_space(step)
            case _:
                raise ValueError(f"{step.what} is not a fault")

    async def _lose_quorum(self, step: Step) -> bool:
        first, second, *_ = self._scene.cluster.members
        async with self._locks[first.name], self._locks[second.name]:
            for member in (first, second):
                member.suspend()
            await trio.sleep(step.lasts)
            for member in (first, second):
                member.resume()
        return True

    async def _want_space(self, step: Step) -> bool:
        member = await store_faults.answering_member(self._scene.cluster)
        if member is None:
            return False
        alarm = partial(store_faults.set_alarm, member)
        done = await trio.to_thread.run_sync(partial(alarm, active=True))
        await trio.sleep(step.lasts)
        await trio.to_thread.run_sync(partial(alarm, active=False))
        return done

    async def _run_service(self, step: Step) -> bool:
        service, args = self._scene.run_service, step.args
        times = int(args.get("times", "1"))

        def script(fault: Fault) -> None:
            service.script(args["call"], *[fault] * times)

        match step.what:
            case "rs-cut":
                self._scene.doors[self._target(step)].cut()
            case "rs-mute":
                door = self._scene.doors[self._target(step)]
                door.stall(Direction.TO_CLIENT)
                await trio.sleep(step.lasts)
                door.unstall()
            case "rs-stop":
                async with self._locks["run service"]:
                    await trio.to_thread.run_sync(service.stop)
                    await trio.sleep(step.lasts)
                    await trio.to_thread.run_sync(service.start)
            case "rs-hang":
                held = threading.Event()
                script(Fault(hold=held))
                await trio.sleep(step.lasts)
                held.set()
            case "rs-slow":
                script(Fault(delay=int(args["ms"]) / 1000))
            case "rs-refuse":
                script(Fault(rpc=grpc.StatusCode[args["code"]]))
            case "rs-inband":
                script(Fault(code=int(args["code"])))
            case "rs-lose":
                script(Fault(rpc=grpc.StatusCode.UNAVAILABLE, applied=True))
            case "rs-forget":
                service.forget()
            case "rs-reject":
                script(Fault(code=3))
            case _:
                raise ValueError(f"{step.what} is not a fault")
        return True
