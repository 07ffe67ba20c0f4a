"""Creates runs: the root and the record of the request, in one transaction."""

from __future__ import annotations

import hashlib
import secrets
import string
from collections.abc import Awaitable, Callable
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from flyteidl2.actions.actions_service_pb2 import Action
from flyteidl2.common.run_pb2 import RELATION_TYPE_RECOVER
from flyteidl2.task.run_pb2 import RunSpec
from flyteidl2.task.task_definition_pb2 import TaskIdentifier, TaskSpec

from etcd_actions.actions import validation
from etcd_actions.actions.recovery import RELATED_TO, source_of
from etcd_actions.actions.rewrite import utc_now
from etcd_actions.actions.stored_action import StoredAction
from etcd_actions.client import ActionsClient
from etcd_actions.errors import AlreadyExists, InvalidArgument, NameTaken, NotFound, NotServed
from etcd_actions.etcd.api import Put
from etcd_actions.images import ImageBuilds, is_build
from etcd_actions.model import ROOT_ACTION, ActionId
from etcd_actions.model import flyte as conversions
from etcd_actions.runs.reading import RunReader
from etcd_actions.runs.run_record import RunRecord, TaskName, encode

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flyteidl2.common.run_pb2 import OffloadedInputData
    from flyteidl2.task.common_pb2 import Inputs
    from flyteidl2.workflow.run_service_pb2 import CreateRunRequest

_ALPHABET: Final = string.ascii_lowercase + string.digits
_MOST_TRIES: Final = 5


FindTask = Callable[[TaskIdentifier], Awaitable[TaskSpec]]
"""The specification of a deployed task; without a version, that of the latest one.

It raises NotFound if the task, or this version, does not exist.
"""


class RunData(Protocol):
    """The store of runs' inputs and outputs."""

    def outputs_of(self, run: ActionId) -> str:
        """The default path or URL below which the outputs of a run are.

        Raises:
            EtcdActionsError: The store has none.
        """

    async def keep_inputs(
        self, run: ActionId, inputs: Inputs, spec: TaskSpec
    ) -> OffloadedInputData:
        """Store inputs durably, without overwriting another run's; returns their URI and hash.

        Raises:
            EtcdActionsError: They were not stored.
        """


class Created(NamedTuple):
    """The result of a request.

    Attributes:
        action: The root; None if it has expired since the same request created it.
        record: The record of the request; None if another client enqueued the same root.
        created: Whether this request created the run; False if an equal one had.
    """

    action: StoredAction | None
    record: RunRecord | None
    created: bool


class RunCreator:
    """Creates runs.

    Args:
        client: Enqueues the root.
        data: The store of the runs' data; None refuses runs that need one.
        find_task: Finds deployed tasks; None refuses runs of these.
        builds: The tasks that build images; None refuses the build of an image.
        clock: The time, aware.
    """

    def __init__(
        self,
        client: ActionsClient,
        data: RunData | None,
        find_task: FindTask | None,
        *,
        builds: ImageBuilds | None = None,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self._client = client
        self._reader = RunReader(client)
        self._data = data
        self._find_task = find_task
        self._builds = builds
        self._clock = clock

    async def create(self, request: CreateRunRequest, subject: str = "") -> Created:
        """Create a run; a repeated request with the same name has the same result.

        A request without a name creates another run each time.

        Args:
            request: Flyte's message.
            subject: The subject of the client's token; empty if unknown.

        Raises:
            InvalidArgument: A field is missing or unusable.
            AlreadyExists: The name is taken.
            NotFound: The deployed task, or the run to recover, does not exist.
            NotServed: It needs a part that this service does not have.
            EtcdError: etcd failed. Cancelled or interrupted, the run may have been created:
                repeating a request with a name is safe.
        """
        kind = request.WhichOneof("id")
        if kind is None:
            raise InvalidArgument("run_id", "it is not set: give it, or project_id")
        if kind == "run_id":
            named = request.run_id
            run = ActionId(named.project, named.domain, named.name, ROOT_ACTION, named.org)
            _check(run, request)
            digest = _digest(request)
            if (before := await self._before(run, digest)) is not None:
                return before
            return await self._create(run, request, digest, subject)
        project = request.project_id
        for tries in range(1, _MOST_TRIES + 1):
            run = ActionId(
                project.name, project.domain, make_name(), ROOT_ACTION, project.organization
            )
            _check(run, request)
            try:
                return await self._create(run, request, "", subject)
            except AlreadyExists:
                if tries == _MOST_TRIES:
                    raise
        raise AssertionError("unreachable")

    async def _before(self, run: ActionId, digest: str) -> Created | None:
        """The result of the same earlier request; None if the name seems free."""
        try:
            found = await self._reader.run(run)
        except NotFound:
            # If another project's run has the name, the enqueue fails.
            return None
        if found.record is None:
            # Another client enqueued it; the enqueue compares the two.
            return None
        if found.record.request_digest != digest:
            raise AlreadyExists(f"run {run.run} exists already: give another name")
        return Created(found.action, found.record, created=False)

    async def _create(
        self, run: ActionId, request: CreateRunRequest, digest: str, subject: str
    ) -> Created:
        spec = await self._task(request)
        if is_build(spec):
            spec = await self._build(request)
        run_spec = RunSpec()
        run_spec.CopyFrom(request.run_spec)
        if request.HasField("run_start_time"):
            run_spec.run_start_time.CopyFrom(request.run_start_time)
        await self._check_source(run, run_spec)
        output_base = self._output_base(run, run_spec)
        inputs = await self._inputs(run, request, spec)
        task_id = _task_id(run, spec)
        recovered = run_spec.relation.relation_type == RELATION_TYPE_RECOVER
        record = RunRecord(
            org=run.org,
            project=run.project,
            domain=run.domain,
            name=run.run,
            request_digest=digest,
            run_spec=run_spec.SerializeToString(deterministic=True),
            task=TaskName(
                task_id.org, task_id.project, task_id.domain, task_id.name, task_id.version
            ),
            short_name=spec.short_name,
            environment=spec.environment.name,
            task_type=spec.task_template.type,
            source=request.source,
            created=self._clock(),
            creator=subject,
            labels=dict(run_spec.labels.values),
            input_uri=inputs.uri,
            inputs_hash=inputs.inputs_hash,
            output_base=output_base,
            recovered_from=run_spec.relation.related_to.name if recovered else "",
        )
        # The organisation is the client's name for this service, and not a part of the object.
        root = ActionId(run.project, run.domain, run.run, ROOT_ACTION)
        action = Action(
            action_id=conversions.action_identifier(root),
            input_uri=inputs.uri,
            run_output_base=output_base,
            subject=subject,
        )
        action.task.spec.CopyFrom(spec)
        action.task.id.CopyFrom(task_id)
        keys = self._client.keys
        companions = (
            Put(keys.run_record(run), encode(record)),
            Put(keys.run_task(run), spec.SerializeToString(deterministic=True)),
        )
        with _fields_of_the_request(request):
            try:
                enqueued = await self._client.enqueue(action, run_spec, companions=companions)
            except (AlreadyExists, NameTaken):
                # A concurrent request may have been the same.
                before = await self._before(run, digest) if digest else None
                if before is None:
                    raise AlreadyExists(f"the name {run.run} is taken: give another name") from None
                return before
        if enqueued.created:
            return Created(enqueued.action, record, created=True)
        found = await self._reader.run(run)
        return Created(enqueued.action, found.record, created=False)

    async def _check_source(self, run: ActionId, run_spec: RunSpec) -> None:
        """Check that the run to recover exists; one that has expired has no successes to reuse."""
        if run_spec.relation.relation_type != RELATION_TYPE_RECOVER:
            return
        source = source_of(run, run_spec.relation.related_to)
        try:
            await self._reader.run(source)
        except NotFound:
            raise NotFound(
                f"{RELATED_TO}: there is no run {source.run} in {run.project}/{run.domain}"
            ) from None

    async def _task(self, request: CreateRunRequest) -> TaskSpec:
        kind = request.WhichOneof("task")
        if kind == "trigger_name":
            raise NotServed("trigger_name: there are no triggers: give task_spec or task_id")
        if kind == "task_id":
            if self._find_task is None:
                raise NotServed("task_id: no deployed tasks are served: give task_spec")
            return await self._find_task(request.task_id)
        if kind is None or not request.task_spec.HasField("task_template"):
            raise InvalidArgument("task_spec.task_template", "it is not set: give a task")
        return request.task_spec

    async def _build(self, request: CreateRunRequest) -> TaskSpec:
        """The task that builds an image; its definition is checked and stored first."""
        if self._builds is None:
            raise NotServed(
                "task: no images are built here: start etcd-actions run with --executor local or "
                "ray, and without --images off"
            )
        if request.WhichOneof("input_wrapper") == "offloaded_input_data":
            return await self._builds.task_spec_at(request.offloaded_input_data.uri)
        return await self._builds.task_spec(request.inputs)

    def _output_base(self, run: ActionId, run_spec: RunSpec) -> str:
        base = run_spec.run_base_dir or run_spec.raw_data_storage.raw_data_prefix
        if not base:
            return self._require_data("run_spec.run_base_dir").outputs_of(run)
        return f"{base.rstrip('/')}/{run.project}/{run.domain}/{run.run}"

    async def _inputs(
        self, run: ActionId, request: CreateRunRequest, spec: TaskSpec
    ) -> OffloadedInputData:
        """The URI of the inputs and their hash; inline ones are stored first."""
        if request.WhichOneof("input_wrapper") == "offloaded_input_data":
            if not request.offloaded_input_data.uri:
                raise InvalidArgument("offloaded_input_data.uri", "it is empty")
            return request.offloaded_input_data
        return await self._require_data("inputs").keep_inputs(run, request.inputs, spec)

    def _require_data(self, field: str) -> RunData:
        if self._data is None:
            raise NotServed(f"{field}: this service has no store for data of runs (--blob-dir)")
        return self._data


def make_name() -> str:
    """A random name of the form of Flyte's."""
    return "r" + "".join(secrets.choice(_ALPHABET) for _ in range(19))


def _task_id(run: ActionId, spec: TaskSpec) -> TaskIdentifier:
    template = spec.task_template.id
    return TaskIdentifier(
        org=template.org,
        project=template.project or run.project,
        domain=template.domain or run.domain,
        name=template.name,
        version=template.version,
    )


@contextmanager
def _fields_of_the_request(request: CreateRunRequest) -> Iterator[None]:
    """Translate the fields in errors to the names in the request."""
    names = _FIELDS[request.WhichOneof("id") or "run_id"]
    try:
        yield
    except InvalidArgument as error:
        raise InvalidArgument(names.get(error.field, error.field), error.reason) from None


def _check(run: ActionId, request: CreateRunRequest) -> None:
    with _fields_of_the_request(request):
        validation.check_names(run, "")


_FIELDS: Final = {
    "run_id": {
        "action_id": "run_id.name",
        "action_id.run.name": "run_id.name",
        "action_id.run.project": "run_id.project",
        "action_id.run.domain": "run_id.domain",
        "action_id.run.org": "run_id.org",
        "task": "task_spec",
    },
    "project_id": {
        "action_id.run.project": "project_id.name",
        "action_id.run.domain": "project_id.domain",
        "action_id.run.org": "project_id.organization",
        "task": "task_spec",
    },
}


def _digest(request: CreateRunRequest) -> str:
    """A digest of a request, without the client's name for this service."""
    copy = type(request)()
    copy.CopyFrom(request)
    copy.run_id.org = ""
    return "sha256:" + hashlib.sha256(copy.SerializeToString(deterministic=True)).hexdigest()
