"""Why a trace failed: Flyte's SDK leaves it in a file, its message has no field for it."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

import structlog
from flyteidl2.actions.actions_service_pb2 import Action
from flyteidl2.common.phase_pb2 import ACTION_PHASE_FAILED
from flyteidl2.core.execution_pb2 import ContainerError, ErrorDocument, ExecutionError
from google.protobuf.message import DecodeError as BadMessage

from etcd_actions.model import ErrorState

_MOST_BYTES = 1024 * 1024
_KINDS = {ExecutionError.USER: "USER", ExecutionError.SYSTEM: "SYSTEM"}

_log = structlog.get_logger(__name__)


def read_trace_error(action: Action) -> ErrorState | None:
    """Read the error of a failed trace, where its file is on this machine.

    It is below the run's base, by the name of the trace. One elsewhere, in object storage for
    instance, is not read: the trace is stored without its error then, which Flyte's SDK takes
    for a reason to run it again.
    """
    if action.trace.phase != ACTION_PHASE_FAILED:
        return None
    base = _local_path(action.run_output_base)
    if base is None:
        return None
    path = base / action.action_id.name / "error.pb"
    try:
        with path.open("rb") as file:
            document = ErrorDocument.FromString(file.read(_MOST_BYTES))
    except (OSError, BadMessage) as error:
        _log.warning("trace_error_unreadable", path=str(path), error=str(error))
        return None
    found = document.error
    return ErrorState(
        code=found.code,
        kind=_KINDS.get(found.origin, ""),
        message=found.message,
        recoverable=found.kind == ContainerError.RECOVERABLE,
    )


def _local_path(uri: str) -> Path | None:
    split = urlsplit(uri)
    if split.scheme == "file" and split.netloc in ("", "localhost"):
        return Path(unquote(split.path))
    return Path(uri) if uri.startswith("/") else None
