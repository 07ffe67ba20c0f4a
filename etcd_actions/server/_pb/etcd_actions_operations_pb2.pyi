from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ListDeadLettersRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListDeadLettersResponse(_message.Message):
    __slots__ = ("dead_letters", "has_leader")
    DEAD_LETTERS_FIELD_NUMBER: _ClassVar[int]
    HAS_LEADER_FIELD_NUMBER: _ClassVar[int]
    dead_letters: _containers.RepeatedCompositeFieldContainer[DeadLetter]
    has_leader: bool
    def __init__(self, dead_letters: _Optional[_Iterable[_Union[DeadLetter, _Mapping]]] = ..., has_leader: _Optional[bool] = ...) -> None: ...

class DeadLetter(_message.Message):
    __slots__ = ("json", "object_create_revision")
    JSON_FIELD_NUMBER: _ClassVar[int]
    OBJECT_CREATE_REVISION_FIELD_NUMBER: _ClassVar[int]
    json: bytes
    object_create_revision: int
    def __init__(self, json: _Optional[bytes] = ..., object_create_revision: _Optional[int] = ...) -> None: ...

class ChangeDeadLetterRequest(_message.Message):
    __slots__ = ("project", "key", "revision", "change")
    class Change(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        NONE: _ClassVar[ChangeDeadLetterRequest.Change]
        RETRY: _ClassVar[ChangeDeadLetterRequest.Change]
        DELETE: _ClassVar[ChangeDeadLetterRequest.Change]
    NONE: ChangeDeadLetterRequest.Change
    RETRY: ChangeDeadLetterRequest.Change
    DELETE: ChangeDeadLetterRequest.Change
    PROJECT_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    CHANGE_FIELD_NUMBER: _ClassVar[int]
    project: str
    key: bytes
    revision: int
    change: ChangeDeadLetterRequest.Change
    def __init__(self, project: _Optional[str] = ..., key: _Optional[bytes] = ..., revision: _Optional[int] = ..., change: _Optional[_Union[ChangeDeadLetterRequest.Change, str]] = ...) -> None: ...

class ChangeDeadLetterResponse(_message.Message):
    __slots__ = ("dead_letter", "deleted")
    DEAD_LETTER_FIELD_NUMBER: _ClassVar[int]
    DELETED_FIELD_NUMBER: _ClassVar[int]
    dead_letter: DeadLetter
    deleted: bool
    def __init__(self, dead_letter: _Optional[_Union[DeadLetter, _Mapping]] = ..., deleted: _Optional[bool] = ...) -> None: ...

class ActionName(_message.Message):
    __slots__ = ("project", "domain", "run", "name", "org")
    PROJECT_FIELD_NUMBER: _ClassVar[int]
    DOMAIN_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ORG_FIELD_NUMBER: _ClassVar[int]
    project: str
    domain: str
    run: str
    name: str
    org: str
    def __init__(self, project: _Optional[str] = ..., domain: _Optional[str] = ..., run: _Optional[str] = ..., name: _Optional[str] = ..., org: _Optional[str] = ...) -> None: ...

class PutStatusRequest(_message.Message):
    __slots__ = ("action", "attempt", "phase", "message", "error")
    ACTION_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    action: ActionName
    attempt: int
    phase: int
    message: str
    error: Error
    def __init__(self, action: _Optional[_Union[ActionName, _Mapping]] = ..., attempt: _Optional[int] = ..., phase: _Optional[int] = ..., message: _Optional[str] = ..., error: _Optional[_Union[Error, _Mapping]] = ...) -> None: ...

class Error(_message.Message):
    __slots__ = ("code", "kind", "message")
    CODE_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    code: str
    kind: str
    message: str
    def __init__(self, code: _Optional[str] = ..., kind: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class PutStatusResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RunName(_message.Message):
    __slots__ = ("project", "domain", "run")
    PROJECT_FIELD_NUMBER: _ClassVar[int]
    DOMAIN_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    project: str
    domain: str
    run: str
    def __init__(self, project: _Optional[str] = ..., domain: _Optional[str] = ..., run: _Optional[str] = ...) -> None: ...

class DeleteRunsRequest(_message.Message):
    __slots__ = ("runs", "dry_run", "force", "reason")
    RUNS_FIELD_NUMBER: _ClassVar[int]
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    runs: _containers.RepeatedCompositeFieldContainer[RunName]
    dry_run: bool
    force: bool
    reason: str
    def __init__(self, runs: _Optional[_Iterable[_Union[RunName, _Mapping]]] = ..., dry_run: _Optional[bool] = ..., force: _Optional[bool] = ..., reason: _Optional[str] = ...) -> None: ...

class DeleteRunsResponse(_message.Message):
    __slots__ = ("runs",)
    RUNS_FIELD_NUMBER: _ClassVar[int]
    runs: _containers.RepeatedCompositeFieldContainer[DeletedRun]
    def __init__(self, runs: _Optional[_Iterable[_Union[DeletedRun, _Mapping]]] = ...) -> None: ...

class DeletedRun(_message.Message):
    __slots__ = ("run", "result", "reason", "histories", "objects", "blobs", "bytes", "blob_bytes", "aborted", "files_elsewhere")
    RUN_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    HISTORIES_FIELD_NUMBER: _ClassVar[int]
    OBJECTS_FIELD_NUMBER: _ClassVar[int]
    BLOBS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    BLOB_BYTES_FIELD_NUMBER: _ClassVar[int]
    ABORTED_FIELD_NUMBER: _ClassVar[int]
    FILES_ELSEWHERE_FIELD_NUMBER: _ClassVar[int]
    run: RunName
    result: str
    reason: str
    histories: int
    objects: int
    blobs: int
    bytes: int
    blob_bytes: int
    aborted: int
    files_elsewhere: str
    def __init__(self, run: _Optional[_Union[RunName, _Mapping]] = ..., result: _Optional[str] = ..., reason: _Optional[str] = ..., histories: _Optional[int] = ..., objects: _Optional[int] = ..., blobs: _Optional[int] = ..., bytes: _Optional[int] = ..., blob_bytes: _Optional[int] = ..., aborted: _Optional[int] = ..., files_elsewhere: _Optional[str] = ...) -> None: ...

class EnqueueOutcome(_message.Message):
    __slots__ = ("result",)
    class Result(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        UNKNOWN: _ClassVar[EnqueueOutcome.Result]
        CREATED: _ClassVar[EnqueueOutcome.Result]
        EXISTED: _ClassVar[EnqueueOutcome.Result]
    UNKNOWN: EnqueueOutcome.Result
    CREATED: EnqueueOutcome.Result
    EXISTED: EnqueueOutcome.Result
    RESULT_FIELD_NUMBER: _ClassVar[int]
    result: EnqueueOutcome.Result
    def __init__(self, result: _Optional[_Union[EnqueueOutcome.Result, str]] = ...) -> None: ...

class AbortOutcome(_message.Message):
    __slots__ = ("known", "aborted", "ended")
    KNOWN_FIELD_NUMBER: _ClassVar[int]
    ABORTED_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    known: bool
    aborted: _containers.RepeatedScalarFieldContainer[str]
    ended: int
    def __init__(self, known: _Optional[bool] = ..., aborted: _Optional[_Iterable[str]] = ..., ended: _Optional[int] = ...) -> None: ...

class ListObjectsRequest(_message.Message):
    __slots__ = ("project", "domain", "run", "name")
    PROJECT_FIELD_NUMBER: _ClassVar[int]
    DOMAIN_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    project: str
    domain: str
    run: str
    name: str
    def __init__(self, project: _Optional[str] = ..., domain: _Optional[str] = ..., run: _Optional[str] = ..., name: _Optional[str] = ...) -> None: ...

class ListObjectsResponse(_message.Message):
    __slots__ = ("revision", "prefix", "objects")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    OBJECTS_FIELD_NUMBER: _ClassVar[int]
    revision: int
    prefix: bytes
    objects: _containers.RepeatedCompositeFieldContainer[StoredObject]
    def __init__(self, revision: _Optional[int] = ..., prefix: _Optional[bytes] = ..., objects: _Optional[_Iterable[_Union[StoredObject, _Mapping]]] = ...) -> None: ...

class WatchUpdatesRequest(_message.Message):
    __slots__ = ("project", "domain", "run")
    PROJECT_FIELD_NUMBER: _ClassVar[int]
    DOMAIN_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    project: str
    domain: str
    run: str
    def __init__(self, project: _Optional[str] = ..., domain: _Optional[str] = ..., run: _Optional[str] = ...) -> None: ...

class WatchUpdatesResponse(_message.Message):
    __slots__ = ("json", "synced")
    JSON_FIELD_NUMBER: _ClassVar[int]
    SYNCED_FIELD_NUMBER: _ClassVar[int]
    json: bytes
    synced: int
    def __init__(self, json: _Optional[bytes] = ..., synced: _Optional[int] = ...) -> None: ...

class WatchCountsRequest(_message.Message):
    __slots__ = ("runs",)
    RUNS_FIELD_NUMBER: _ClassVar[int]
    runs: _containers.RepeatedCompositeFieldContainer[RunName]
    def __init__(self, runs: _Optional[_Iterable[_Union[RunName, _Mapping]]] = ...) -> None: ...

class WatchCountsResponse(_message.Message):
    __slots__ = ("runs",)
    RUNS_FIELD_NUMBER: _ClassVar[int]
    runs: _containers.RepeatedCompositeFieldContainer[ActionCounts]
    def __init__(self, runs: _Optional[_Iterable[_Union[ActionCounts, _Mapping]]] = ...) -> None: ...

class ActionCounts(_message.Message):
    __slots__ = ("run", "ended", "actions")
    RUN_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    ACTIONS_FIELD_NUMBER: _ClassVar[int]
    run: RunName
    ended: int
    actions: int
    def __init__(self, run: _Optional[_Union[RunName, _Mapping]] = ..., ended: _Optional[int] = ..., actions: _Optional[int] = ...) -> None: ...

class StoredObject(_message.Message):
    __slots__ = ("key", "value", "create_revision", "mod_revision", "version", "lease")
    KEY_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    CREATE_REVISION_FIELD_NUMBER: _ClassVar[int]
    MOD_REVISION_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    key: bytes
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease: int
    def __init__(self, key: _Optional[bytes] = ..., value: _Optional[bytes] = ..., create_revision: _Optional[int] = ..., mod_revision: _Optional[int] = ..., version: _Optional[int] = ..., lease: _Optional[int] = ...) -> None: ...
