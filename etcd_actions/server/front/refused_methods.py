"""Methods of Flyte that this service does not implement: the refusal of each names a substitute."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from flyteidl2.app import app_logs_service_pb2, app_service_pb2
from flyteidl2.artifact import artifact_service_pb2
from flyteidl2.dataproxy import dataproxy_service_pb2
from flyteidl2.project import project_service_pb2
from flyteidl2.secret import secret_pb2
from flyteidl2.settings import settings_service_pb2
from flyteidl2.task import task_service_pb2
from flyteidl2.trigger import trigger_service_pb2
from flyteidl2.workflow import (
    events_proxy_service_pb2,
    queue_service_pb2,
    run_logs_service_pb2,
    run_service_pb2,
    state_service_pb2,
    tracked_run_service_pb2,
    translator_service_pb2,
)

if TYPE_CHECKING:
    from google.protobuf.descriptor import FileDescriptor

    from etcd_actions.server.methods import Methods

_APPS = "apps are not served here: run the app where it is to listen, by its own command"
_FILES: Final[tuple[tuple[FileDescriptor, str], ...]] = (
    (app_service_pb2.DESCRIPTOR, _APPS),
    (app_logs_service_pb2.DESCRIPTOR, _APPS),
    (
        artifact_service_pb2.DESCRIPTOR,
        "artifacts are not kept here: give a run's outputs to the next one",
    ),
    (dataproxy_service_pb2.DESCRIPTOR, "this service stores no blobs: it was started without"),
    (project_service_pb2.DESCRIPTOR, "projects are not changed here"),
    (
        secret_pb2.DESCRIPTOR,
        "secrets are not stored here: the local executor maps them from files or from its "
        "environment",
    ),
    (
        settings_service_pb2.DESCRIPTOR,
        "settings are not kept for clients here: give them to flyte.with_runcontext(), or in the "
        "SDK's config.yaml",
    ),
    (task_service_pb2.DESCRIPTOR, "deployed tasks are not kept by this service"),
    (
        trigger_service_pb2.DESCRIPTOR,
        "triggers need a scheduler, which is not built: let cron run `flyte run deployed-task`, "
        "and deploy the task without triggers",
    ),
    (
        events_proxy_service_pb2.DESCRIPTOR,
        "events of other backends are not recorded here: see ActionsService.Update",
    ),
    (queue_service_pb2.DESCRIPTOR, "there is no queue service here: see ActionsService.Enqueue"),
    (
        run_logs_service_pb2.DESCRIPTOR,
        "this service reads no logs: it was started without",
    ),
    (
        run_service_pb2.DESCRIPTOR,
        "this service does not answer for runs in this way: use ListRuns, which has the scope "
        "task_name for groups",
    ),
    (state_service_pb2.DESCRIPTOR, "there is no state service here: see ActionsService"),
    (
        tracked_run_service_pb2.DESCRIPTOR,
        "runs that a client runs itself are not tracked here: leave local_tracked out, and let "
        "the service run it",
    ),
    (translator_service_pb2.DESCRIPTOR, "there is no console here, and no forms for it"),
)


def refuse_others(methods: Methods) -> None:
    """Refuse each method of Flyte's services that no service has added."""
    for file, reason in _FILES:
        for service in file.services_by_name.values():
            for method in service.methods:
                if not method.client_streaming:
                    methods.refuse(method, f"{service.name}.{method.name}: {reason}")
