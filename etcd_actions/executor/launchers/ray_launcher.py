"""Submits each attempt as a job of a Ray cluster, and follows it there.

A job's submission id contains the attempt's name, which no other attempt has. Ray refuses a second
job with the same id. So each attempt starts at most once, whichever executor submits it.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar, TypeVarTuple

import structlog
import trio

from etcd_actions._internal.backoff import Backoff
from etcd_actions._internal.containment import Containment
from etcd_actions._internal.retrying import seldom
from etcd_actions.executor.attempts.attempt_command import SDK_COMMAND, Command
from etcd_actions.executor.attempts.attempt_directory import AttemptDirectory
from etcd_actions.executor.attempts.start_errors import NotStarted
from etcd_actions.executor.executor_settings import RaySettings
from etcd_actions.executor.launchers.launcher import LauncherUnavailable, Look, State
from etcd_actions.executor.launchers.ray_jobs import RayJob, RayJobs, RayRefused

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

UNIT: Final = "ray"
"""The kind of the unit that is parked, see :mod:`etcd_actions._internal.containment`."""

_BACKOFF: Final = Backoff(initial=0.5, cap=15.0)
# Seconds after the grace for a job to stop; then a task of its own continues to stop it.
_STOPPED_WITHIN: Final = 30.0
# Seconds between two looks at a job that is being stopped.
_LOOK_EVERY: Final = 0.5
# The bytes that JSON may take for one byte of a log.
_JSON_BYTES_PER_BYTE: Final = 6
# Characters of Ray's reason for the end of a job.
_LONGEST_REASON: Final = 2000
# The beginning of the submission ids of attempts.
_PREFIX: Final = "etcd-actions-"
# The beginning of a shell command that runs in a new directory, which it removes at its end.
_IN_OWN_DIRECTORY: Final = (
    "d=$(mktemp -d) && trap 'rm -rf \"$d\"' EXIT && trap 'exit 143' TERM && cd \"$d\" && "
)

_log = structlog.get_logger(__name__)


class RayLauncher:
    """Runs attempts as jobs of Ray.

    Args:
        settings: See :class:`RaySettings`.
        nursery: Runs the tasks that stop jobs which did not end in time.
        kill_grace: Seconds between SIGTERM and SIGKILL.
        log_bytes: The most bytes of a log that are read.
        containment: Has the unit that is parked while Ray does not answer.
    """

    def __init__(
        self,
        settings: RaySettings,
        nursery: trio.Nursery,
        kill_grace: float,
        log_bytes: int,
        containment: Containment,
    ) -> None:
        self._settings = settings
        self._jobs = RayJobs(settings.address, settings.token_file, settings.within)
        self._nursery = nursery
        self._kill_grace = kill_grace
        self._log_bytes = log_bytes
        self._containment = containment
        self._failures = 0
        self._failure = ""
        self._not_before = -math.inf
        self._report = seldom(_log, "ray_unavailable", address=settings.address)

    async def start(self, place: AttemptDirectory, command: Command, lock: int) -> bool:
        """See :meth:`Launcher.start`. The lock is not needed after this call: Ray has the state."""
        name = job_name(place)
        try:
            try:
                await self._call(self._jobs.submit, self._request(name, command))
            except RayRefused as error:
                # It may be refused because an earlier call, whose answer was lost, submitted it.
                if await self._call(self._jobs.look, name) is None:
                    by_machine = error.status >= 500
                    raise NotStarted.because(str(error), by_machine=by_machine) from error
        except LauncherUnavailable as error:
            # Ray may have accepted the job.
            raise NotStarted.unknown(str(error)) from error
        return True

    async def look(self, place: AttemptDirectory, *, within: float) -> Look:
        """See :meth:`Launcher.look`. It sleeps for ``within`` seconds, and then calls once."""
        await trio.sleep(within)
        job = await self._call(self._jobs.look, job_name(place))
        if job is None:
            reason = "Ray does not know the job any more: its head lost its state"
            return Look(State.ENDED, reason=f"{reason}, or the job was deleted")
        return _state_of(job)

    async def finds(self, place: AttemptDirectory) -> bool:
        """See :meth:`SharedLauncher.finds`."""
        return await self._call(self._jobs.look, job_name(place)) is not None

    async def stop(self, place: AttemptDirectory) -> None:
        """See :meth:`Launcher.stop`. If a job does not end in time, a task continues to stop it."""
        with trio.move_on_after(self._kill_grace + _STOPPED_WITHIN):
            await self._stop(place)
            return
        _log.warning("attempt_not_ended", place=str(place.path), job=job_name(place))
        self._nursery.start_soon(self._stop, place)

    async def logs(self, place: AttemptDirectory) -> bytes | None:
        """See :meth:`Launcher.logs`. A failure parks nothing: the job's node may be the cause."""
        return await self._jobs.logs(job_name(place), self._log_bytes * _JSON_BYTES_PER_BYTE)

    async def _stop(self, place: AttemptDirectory) -> None:
        """Request the end of a job until it has ended, with a back-off.

        A job that still waits in Ray for resources ends as soon as it has them.
        """
        failures = 0
        while True:
            failures += 1
            try:
                accepted = await self._call(self._jobs.stop, job_name(place))
                seen = await self.look(place, within=_LOOK_EVERY)
                while seen.state is State.RUNNING and accepted:
                    seen = await self.look(place, within=_LOOK_EVERY)
                if seen.state is State.ENDED or (seen.state is State.PENDING and accepted):
                    return
            except LauncherUnavailable as error:
                _log.debug("not_stopped", job=job_name(place), error=str(error))
            await trio.sleep(_BACKOFF.delay(failures))

    async def _call(self, call: Callable[[*Ts], Awaitable[T]], *args: *Ts) -> T:
        """Make a call. While Ray does not answer, make one at a time, with a back-off.

        Raises:
            LauncherUnavailable: Ray did not answer this call, or the last one, of which the
                back-off has not ended.
            RayRefused: Ray answered with an error.
        """
        now = trio.current_time()
        if now < self._not_before:
            raise LauncherUnavailable(self._failure)
        if self._failures:
            self._not_before = now + self._settings.within
        try:
            found = await call(*args)
        except LauncherUnavailable as error:
            self._failures += 1
            delay = _BACKOFF.delay(self._failures)
            self._failure, self._not_before = str(error), trio.current_time() + delay
            self._containment.park(UNIT, self._settings.address, error)
            self._report(error, self._failures, delay)
            raise
        except BaseException as error:
            self._not_before = -math.inf
            if isinstance(error, RayRefused):
                self._recovered()
            raise
        self._recovered()
        return found

    def _recovered(self) -> None:
        if self._failures:
            self._failures, self._not_before = 0, -math.inf
            self._containment.forget(UNIT, self._settings.address)

    def _request(self, name: str, command: Command) -> dict[str, Any]:
        """The body of a submission."""
        variables = command.environment
        runtime: dict[str, Any] = {
            # Ray's supervisor of the job waits so many seconds between SIGTERM and SIGKILL.
            "env_vars": variables | {"RAY_JOB_STOP_WAIT_TIME_S": f"{math.ceil(self._kill_grace)}"}
        }
        if command.packages:
            runtime["pip"] = list(command.packages)
        needs = command.needs
        return {
            "submission_id": name,
            "entrypoint": _entrypoint(command, self._settings),
            "runtime_env": runtime,
            "metadata": {
                "job_name": f"{variables.get('RUN_NAME', '')}/{variables.get('ACTION_NAME', '')}"
            },
            # Without any resource Ray would run it on the head.
            "entrypoint_num_cpus": needs.cpus or self._settings.cpus,
            "entrypoint_num_gpus": needs.gpus,
            "entrypoint_memory": math.ceil(needs.memory),
        }


def job_name(place: AttemptDirectory) -> str:
    """The submission id of an attempt."""
    return _PREFIX + place.name.replace("/", "-")


def _entrypoint(command: Command, settings: RaySettings) -> str:
    """The command line that the shell of the job's node runs."""
    arguments = command.arguments
    if arguments[0] == SDK_COMMAND and settings.python is not None and not command.packages:
        arguments = [str(settings.python.with_name(SDK_COMMAND)), *arguments[1:]]
    line = shlex.join(arguments)
    if command.directory is not None:
        return f"cd {shlex.quote(str(command.directory))} && exec {line}"
    return _IN_OWN_DIRECTORY + line


def _state_of(job: RayJob) -> Look:
    """The state of an attempt by the state of its job.

    Raises:
        LauncherUnavailable: Ray reports a status that is not known here.
    """
    ended_at = None if job.end_time is None else job.end_time / 1000
    match job.status:
        case "PENDING":
            return Look(State.PENDING)
        case "RUNNING":
            return Look(State.RUNNING)
        case "SUCCEEDED":
            return Look(State.ENDED, 0, ended_at)
        case "STOPPED":
            return Look(State.ENDED, None, ended_at, "the job was stopped in Ray")
        case "FAILED":
            why = f"Ray ended the job: {job.error_type or 'FAILED'}: {job.message or ''}"
            return Look(State.ENDED, job.driver_exit_code, ended_at, why[:_LONGEST_REASON])
        case other:
            raise LauncherUnavailable(f"Ray reports an unknown status {other[:80]!r}")
