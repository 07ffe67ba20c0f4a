"""The job interface of a Ray head that runs nothing: a test sets the states of its jobs."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from tests.support.http_server import HttpRequest, answer, serving_http


class RayHead:
    """Keeps jobs; made by :func:`open_ray_head`.

    Attributes:
        address: Its URL.
        first_status: The status of a job that was submitted.
        jobs: Each job by its submission id, with the fields that Ray reports.
        submitted: The bodies of all submissions that it accepted, in order.
        stopped: The jobs whose end was requested, in order.
        logs: The log of each job, by its submission id.
        fault: Called with each request first; what it returns is sent instead of an answer, and
            None means that there is no fault.
    """

    def __init__(self) -> None:
        self.address = ""
        self.first_status = "RUNNING"
        self.jobs: dict[str, dict[str, Any]] = {}
        self.submitted: list[dict[str, Any]] = []
        self.stopped: list[str] = []
        self.logs: dict[str, str] = {}
        self.fault: Callable[[HttpRequest], Awaitable[bytes | None]] = _none

    def set(self, status: str, **fields: Any) -> None:
        """Set the state of all jobs."""
        for job in self.jobs.values():
            job.update(status=status, **fields)

    async def serve(self, request: HttpRequest) -> bool:
        """Answer one request."""
        instead = await self.fault(request)
        if instead is not None:
            await request.send(instead)
            return False
        await request.send(self.answer(request))
        return True

    def answer(self, request: HttpRequest) -> bytes:
        """What Ray answers to a request, which takes effect."""
        name, _, part = request.path.removeprefix("/api/jobs/").partition("/")
        if not name:
            return self._submit(json.loads(request.body))
        if name not in self.jobs:
            return answer(f"Job {name} does not exist".encode(), "404 Not Found")
        if part == "stop":
            self.stopped.append(name)
            if self.jobs[name]["status"] == "RUNNING":
                self.jobs[name]["status"] = "STOPPED"
            return answer(b'{"stopped": true}')
        if part == "logs":
            return answer(json.dumps({"logs": self.logs.get(name, "")}).encode())
        return answer(json.dumps(self.jobs[name]).encode())

    def _submit(self, job: dict[str, Any]) -> bytes:
        name = job["submission_id"]
        if name in self.jobs:
            # As Ray does: its agent's refusal becomes a traceback.
            text = f"Traceback\nValueError: Job with submission_id {name} already exists."
            return answer(text.encode(), "500 Internal Server Error")
        self.submitted.append(job)
        self.jobs[name] = {"status": self.first_status, "message": None, "type": "SUBMISSION"}
        return answer(json.dumps({"job_id": name, "submission_id": name}).encode())


async def _none(request: HttpRequest) -> bytes | None:
    return None


@asynccontextmanager
async def open_ray_head() -> AsyncIterator[RayHead]:
    """Listen on a port of its own."""
    head = RayHead()
    async with serving_http(head.serve) as server:
        server.answers_gets = True
        head.address = f"http://127.0.0.1:{server.port}"
        yield head
