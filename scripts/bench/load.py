"""The generator, in a process of its own: puts, as planned, and what became of the plan.

At a fixed rate it is an open loop: what is due is sent, whether or not earlier puts were
answered, and how late each one was is reported. Without a rate it keeps a number of
transactions in flight.

It speaks HTTP/2 by itself (``calls.py``), so that it costs little compared with its target.
Commands: ``warm`` sends some puts slowly, ``go`` the load.
"""

from __future__ import annotations

import json
import time
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import count, islice
from pathlib import Path

from scripts.bench.bodies import ACTIONS_PER_RUN, STAMP_DIGITS, Body, bodies, stamp
from scripts.bench.calls import Calls
from scripts.bench.channel import Channel, serve
from scripts.bench.wire import Message, put_request, txn_operation

_MOST_IN_FLIGHT = 20_000
_ANSWER_SECONDS = 30
_WARM_RATE = 500


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The load to send.

    Attributes:
        host: etcd's host.
        port: etcd's port.
        history: The captured TaskActions.
        prefix: What keys begin with.
        keys: The number of different keys.
        rate: Events a second, 0 for as many as go.
        batch: Puts in one transaction; 1 sends plain puts.
        in_flight: Transactions in flight when there is no rate.
        events: Send no more than this.
        seconds: Send for no longer than this.
        warm: Events to send at ``warm``.
        rewrite: Go through the keys again and again; else write each key once.
        acks: A file for the time of each answer.
        per_run: Actions of a run.
        small: Send values without a task's template.
    """

    host: str
    port: int
    history: str
    prefix: str
    keys: int
    rate: float
    batch: int
    in_flight: int
    events: int
    seconds: float
    warm: int
    rewrite: bool
    acks: str
    per_run: int = ACTIONS_PER_RUN
    small: bool = False

    def to_json(self) -> str:
        """For the command line of the process."""
        return json.dumps(asdict(self))


class Generator:
    """Sends a plan's messages."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        method = "Put" if plan.batch == 1 else "Txn"
        self._calls = Calls(plan.host, plan.port, f"/etcdserverpb.KV/{method}", self._answered)
        self._messages = self._cycle()
        self._sent = 0
        self._acks = array("q")
        self._waited = array("q")
        self._late = array("q")

    def warm(self) -> None:
        """Send a few events slowly."""
        interval = self._plan.batch / _WARM_RATE * 1e9
        due = time.monotonic_ns()
        for _ in range(self._plan.warm // self._plan.batch):
            self._send()
            due += int(interval)
            self._wait_until(due)
        self._drain()

    def go(self) -> dict[str, object]:
        """Send the load, wait for the answers, and report."""
        plan = self._plan
        sent_before, acked_before = self._sent, len(self._acks)
        cpu = time.process_time_ns()
        start = time.monotonic_ns()
        if plan.rate:
            self._send_at_rate(start)
        else:
            self._send_all_out(start)
        self._drain()
        acks = self._acks[acked_before:]
        with Path(plan.acks).open("wb") as file:
            acks.tofile(file)
        late, waited = sorted(self._late), sorted(self._waited[acked_before:])
        sent = (self._sent - sent_before) * plan.batch
        acked = len(acks) * plan.batch
        elapsed = (acks[-1] if acks else time.monotonic_ns()) - start
        return {
            "sent": sent,
            "acked": acked,
            "seconds": elapsed / 1e9,
            "rate": acked / elapsed * 1e9,
            "late_p99_ms": _at(late, 99),
            "late_max_ms": _at(late, 100),
            "put_p50_ms": _at(waited, 50),
            "put_p99_ms": _at(waited, 99),
            "cpu_us": (time.process_time_ns() - cpu) / 1e3 / max(sent, 1),
            "failed": sent - acked,
        }

    def _send_at_rate(self, start: int) -> None:
        plan = self._plan
        calls = min(plan.events, int(plan.rate * plan.seconds)) // plan.batch
        interval = plan.batch / plan.rate * 1e9
        # Behind schedule, it continues for as long again, and reports how late.
        deadline = start + int(2 * plan.seconds * 1e9)
        for index in range(calls):
            due = start + int(index * interval)
            self._wait_until(due)
            while self._calls.in_flight >= _MOST_IN_FLIGHT:
                self._calls.wait(0.1)
            now = time.monotonic_ns()
            if now > deadline:
                return
            self._late.append(now - due)
            self._send()

    def _send_all_out(self, start: int) -> None:
        plan = self._plan
        deadline = start + int(plan.seconds * 1e9)
        for _ in range(plan.events // plan.batch):
            while self._calls.in_flight >= plan.in_flight:
                self._calls.wait(0.1)
            if time.monotonic_ns() > deadline:
                return
            self._send()

    def _send(self) -> None:
        parts: list[bytes] = []
        for head, tail in islice(self._messages, self._plan.batch):
            parts += (head, stamp(time.monotonic_ns()), tail)
        self._sent += 1
        self._calls.send(b"".join(parts))

    def _wait_until(self, due: int) -> None:
        """Take answers until ``due``, at least those that are there."""
        self._calls.wait(0)
        while (left := due - time.monotonic_ns()) > 0:
            self._calls.wait(left / 1e9)

    def _drain(self) -> None:
        deadline = time.monotonic() + _ANSWER_SECONDS
        while self._calls.in_flight and time.monotonic() < deadline:
            self._calls.wait(0.1)

    def _answered(self, started: int, done: bool) -> None:
        now = time.monotonic_ns()
        if done:
            self._acks.append(now)
            self._waited.append(now - started)

    def _cycle(self) -> Iterator[Message]:
        plan = self._plan
        lives = bodies(
            Path(plan.history), plan.prefix, plan.keys, per_run=plan.per_run, small=plan.small
        )
        message = put_request if plan.batch == 1 else _operation
        if not plan.rewrite:
            for index, states in enumerate(lives):
                yield message(states[index % len(states)])
            return
        # All keys in their first state, then all in their second: no key twice in a batch.
        prepared = [[message(body) for body in states] for states in lives]
        for state in count():
            for messages in prepared:
                yield messages[state % len(messages)]


def _operation(body: Body) -> Message:
    return txn_operation(put_request(body), STAMP_DIGITS)


def _at(ordered: Sequence[int], percent: int) -> float:
    """A percentile of nanoseconds, in milliseconds."""
    if not ordered:
        return 0.0
    return ordered[min(len(ordered) * percent // 100, len(ordered) - 1)] / 1e6


def _serve(channel: Channel, argument: str) -> None:
    generator = Generator(Plan(**json.loads(argument)))
    for command in channel.commands():
        match command:
            case ["warm"]:
                generator.warm()
                channel.say("warmed")
            case ["go"]:
                channel.say("done", **generator.go())
            case _:
                raise ValueError(f"unknown command {command}")


if __name__ == "__main__":
    serve(_serve)
