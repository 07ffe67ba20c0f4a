"""The error of a failed trace: Flyte's SDK writes it to a file, the message has no field for it."""

from __future__ import annotations

from pathlib import Path

import structlog
from flyteidl2.actions.actions_service_pb2 import Action
from flyteidl2.common.phase_pb2 import ACTION_PHASE_FAILED
from flyteidl2.core.execution_pb2 import ContainerError, ErrorDocument, ExecutionError
from google.protobuf.message import DecodeError as BadMessage

from etcd_actions._internal.untrusted_files import UnusableFile, in_thread, local_path, read_regular
from etcd_actions.model import ErrorState

# Bytes of the file.
_MOST_BYTES = 1024 * 1024
# It is stored in etcd, and sent to the subscribers of the action.
_MOST_MESSAGE = 64 * 1024
_MOST_CODE = 256
_WITHIN = 10.0
_KINDS = {ExecutionError.USER: "USER", ExecutionError.SYSTEM: "SYSTEM"}

_log = structlog.get_logger(__name__)


async def read_trace_error(action: Action) -> ErrorState | None:
    """Read the error of a failed trace, if its file is on this machine.

    The file is below the run's base, by the name of the trace. A file in object storage is not
    read: then the trace is stored without its error, and Flyte's SDK runs it again. If the path is
    no regular file, or the file is too large, that is the error. The path comes from the client: a
    cancellation abandons a thread that hangs in its file system.
    """
    if action.trace.phase != ACTION_PHASE_FAILED:
        return None
    base = local_path(action.run_output_base)
    if base is None:
        return None
    path = base / action.action_id.name / "error.pb"
    try:
        document = await in_thread(_WITHIN, path, _read, path)
    except UnusableFile as error:
        _log.warning("trace_error_unreadable", path=str(path), error=str(error))
        return ErrorState(code="ErrorUnreadable", kind="USER", message=str(error))
    except (OSError, ValueError, BadMessage) as error:
        # A path with a NUL is a ValueError.
        _log.warning("trace_error_unreadable", path=str(path), error=str(error))
        return None
    found = document.error
    return ErrorState(
        code=found.code[:_MOST_CODE],
        kind=_KINDS.get(found.origin, ""),
        message=found.message[:_MOST_MESSAGE],
        recoverable=found.kind == ContainerError.RECOVERABLE,
    )


def _read(path: Path) -> ErrorDocument:
    return ErrorDocument.FromString(read_regular(path, limit=_MOST_BYTES))
