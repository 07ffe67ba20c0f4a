from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class TaskAction(_message.Message):
    __slots__ = ("api_version", "kind", "metadata", "spec", "status", "other_fields")
    API_VERSION_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    OTHER_FIELDS_FIELD_NUMBER: _ClassVar[int]
    api_version: str
    kind: str
    metadata: ObjectMeta
    spec: TaskActionSpec
    status: TaskActionStatus
    other_fields: bytes
    def __init__(self, api_version: _Optional[str] = ..., kind: _Optional[str] = ..., metadata: _Optional[_Union[ObjectMeta, _Mapping]] = ..., spec: _Optional[_Union[TaskActionSpec, _Mapping]] = ..., status: _Optional[_Union[TaskActionStatus, _Mapping]] = ..., other_fields: _Optional[bytes] = ...) -> None: ...

class ObjectMeta(_message.Message):
    __slots__ = ("name", "namespace", "uid", "generation", "creation_timestamp", "deletion_timestamp", "deletion_grace_period_seconds", "labels", "annotations", "finalizers", "owner_references", "managed_fields", "other_fields")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class AnnotationsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    CREATION_TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    DELETION_TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    DELETION_GRACE_PERIOD_SECONDS_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    ANNOTATIONS_FIELD_NUMBER: _ClassVar[int]
    FINALIZERS_FIELD_NUMBER: _ClassVar[int]
    OWNER_REFERENCES_FIELD_NUMBER: _ClassVar[int]
    MANAGED_FIELDS_FIELD_NUMBER: _ClassVar[int]
    OTHER_FIELDS_FIELD_NUMBER: _ClassVar[int]
    name: str
    namespace: str
    uid: str
    generation: int
    creation_timestamp: str
    deletion_timestamp: str
    deletion_grace_period_seconds: int
    labels: _containers.ScalarMap[str, str]
    annotations: _containers.ScalarMap[str, str]
    finalizers: _containers.RepeatedScalarFieldContainer[str]
    owner_references: _containers.RepeatedCompositeFieldContainer[OwnerReference]
    managed_fields: _containers.RepeatedCompositeFieldContainer[ManagedFieldsEntry]
    other_fields: bytes
    def __init__(self, name: _Optional[str] = ..., namespace: _Optional[str] = ..., uid: _Optional[str] = ..., generation: _Optional[int] = ..., creation_timestamp: _Optional[str] = ..., deletion_timestamp: _Optional[str] = ..., deletion_grace_period_seconds: _Optional[int] = ..., labels: _Optional[_Mapping[str, str]] = ..., annotations: _Optional[_Mapping[str, str]] = ..., finalizers: _Optional[_Iterable[str]] = ..., owner_references: _Optional[_Iterable[_Union[OwnerReference, _Mapping]]] = ..., managed_fields: _Optional[_Iterable[_Union[ManagedFieldsEntry, _Mapping]]] = ..., other_fields: _Optional[bytes] = ...) -> None: ...

class OwnerReference(_message.Message):
    __slots__ = ("api_version", "kind", "name", "uid", "controller", "block_owner_deletion", "other_fields")
    API_VERSION_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    CONTROLLER_FIELD_NUMBER: _ClassVar[int]
    BLOCK_OWNER_DELETION_FIELD_NUMBER: _ClassVar[int]
    OTHER_FIELDS_FIELD_NUMBER: _ClassVar[int]
    api_version: str
    kind: str
    name: str
    uid: str
    controller: bool
    block_owner_deletion: bool
    other_fields: bytes
    def __init__(self, api_version: _Optional[str] = ..., kind: _Optional[str] = ..., name: _Optional[str] = ..., uid: _Optional[str] = ..., controller: _Optional[bool] = ..., block_owner_deletion: _Optional[bool] = ..., other_fields: _Optional[bytes] = ...) -> None: ...

class ManagedFieldsEntry(_message.Message):
    __slots__ = ("manager", "operation", "api_version", "time", "fields_type", "fields_v1", "subresource", "other_fields")
    MANAGER_FIELD_NUMBER: _ClassVar[int]
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    API_VERSION_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    FIELDS_TYPE_FIELD_NUMBER: _ClassVar[int]
    FIELDS_V1_FIELD_NUMBER: _ClassVar[int]
    SUBRESOURCE_FIELD_NUMBER: _ClassVar[int]
    OTHER_FIELDS_FIELD_NUMBER: _ClassVar[int]
    manager: str
    operation: str
    api_version: str
    time: str
    fields_type: str
    fields_v1: bytes
    subresource: str
    other_fields: bytes
    def __init__(self, manager: _Optional[str] = ..., operation: _Optional[str] = ..., api_version: _Optional[str] = ..., time: _Optional[str] = ..., fields_type: _Optional[str] = ..., fields_v1: _Optional[bytes] = ..., subresource: _Optional[str] = ..., other_fields: _Optional[bytes] = ...) -> None: ...

class TaskActionSpec(_message.Message):
    __slots__ = ("project", "domain", "run_name", "action_name", "parent_action_name", "action_type", "input_uri", "run_output_base", "cache_key", "task_type", "short_name", "group", "task_template", "condition_spec", "other_fields", "env_vars", "interruptible", "trace_spec")
    class EnvVarsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    PROJECT_FIELD_NUMBER: _ClassVar[int]
    DOMAIN_FIELD_NUMBER: _ClassVar[int]
    RUN_NAME_FIELD_NUMBER: _ClassVar[int]
    ACTION_NAME_FIELD_NUMBER: _ClassVar[int]
    PARENT_ACTION_NAME_FIELD_NUMBER: _ClassVar[int]
    ACTION_TYPE_FIELD_NUMBER: _ClassVar[int]
    INPUT_URI_FIELD_NUMBER: _ClassVar[int]
    RUN_OUTPUT_BASE_FIELD_NUMBER: _ClassVar[int]
    CACHE_KEY_FIELD_NUMBER: _ClassVar[int]
    TASK_TYPE_FIELD_NUMBER: _ClassVar[int]
    SHORT_NAME_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    TASK_TEMPLATE_FIELD_NUMBER: _ClassVar[int]
    CONDITION_SPEC_FIELD_NUMBER: _ClassVar[int]
    OTHER_FIELDS_FIELD_NUMBER: _ClassVar[int]
    ENV_VARS_FIELD_NUMBER: _ClassVar[int]
    INTERRUPTIBLE_FIELD_NUMBER: _ClassVar[int]
    TRACE_SPEC_FIELD_NUMBER: _ClassVar[int]
    project: str
    domain: str
    run_name: str
    action_name: str
    parent_action_name: str
    action_type: str
    input_uri: str
    run_output_base: str
    cache_key: str
    task_type: str
    short_name: str
    group: str
    task_template: bytes
    condition_spec: bytes
    other_fields: bytes
    env_vars: _containers.ScalarMap[str, str]
    interruptible: bool
    trace_spec: bytes
    def __init__(self, project: _Optional[str] = ..., domain: _Optional[str] = ..., run_name: _Optional[str] = ..., action_name: _Optional[str] = ..., parent_action_name: _Optional[str] = ..., action_type: _Optional[str] = ..., input_uri: _Optional[str] = ..., run_output_base: _Optional[str] = ..., cache_key: _Optional[str] = ..., task_type: _Optional[str] = ..., short_name: _Optional[str] = ..., group: _Optional[str] = ..., task_template: _Optional[bytes] = ..., condition_spec: _Optional[bytes] = ..., other_fields: _Optional[bytes] = ..., env_vars: _Optional[_Mapping[str, str]] = ..., interruptible: _Optional[bool] = ..., trace_spec: _Optional[bytes] = ...) -> None: ...

class TaskActionStatus(_message.Message):
    __slots__ = ("state_json", "plugin_state", "plugin_state_version", "plugin_phase", "plugin_phase_version", "attempts", "system_failures", "cache_status", "conditions", "phase_history", "error_state", "signal_value", "signalled_by", "signalled_at", "other_fields", "output_uri")
    STATE_JSON_FIELD_NUMBER: _ClassVar[int]
    PLUGIN_STATE_FIELD_NUMBER: _ClassVar[int]
    PLUGIN_STATE_VERSION_FIELD_NUMBER: _ClassVar[int]
    PLUGIN_PHASE_FIELD_NUMBER: _ClassVar[int]
    PLUGIN_PHASE_VERSION_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    SYSTEM_FAILURES_FIELD_NUMBER: _ClassVar[int]
    CACHE_STATUS_FIELD_NUMBER: _ClassVar[int]
    CONDITIONS_FIELD_NUMBER: _ClassVar[int]
    PHASE_HISTORY_FIELD_NUMBER: _ClassVar[int]
    ERROR_STATE_FIELD_NUMBER: _ClassVar[int]
    SIGNAL_VALUE_FIELD_NUMBER: _ClassVar[int]
    SIGNALLED_BY_FIELD_NUMBER: _ClassVar[int]
    SIGNALLED_AT_FIELD_NUMBER: _ClassVar[int]
    OTHER_FIELDS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_URI_FIELD_NUMBER: _ClassVar[int]
    state_json: str
    plugin_state: bytes
    plugin_state_version: int
    plugin_phase: str
    plugin_phase_version: int
    attempts: int
    system_failures: int
    cache_status: int
    conditions: _containers.RepeatedCompositeFieldContainer[Condition]
    phase_history: _containers.RepeatedCompositeFieldContainer[PhaseTransition]
    error_state: ErrorState
    signal_value: bytes
    signalled_by: str
    signalled_at: str
    other_fields: bytes
    output_uri: str
    def __init__(self, state_json: _Optional[str] = ..., plugin_state: _Optional[bytes] = ..., plugin_state_version: _Optional[int] = ..., plugin_phase: _Optional[str] = ..., plugin_phase_version: _Optional[int] = ..., attempts: _Optional[int] = ..., system_failures: _Optional[int] = ..., cache_status: _Optional[int] = ..., conditions: _Optional[_Iterable[_Union[Condition, _Mapping]]] = ..., phase_history: _Optional[_Iterable[_Union[PhaseTransition, _Mapping]]] = ..., error_state: _Optional[_Union[ErrorState, _Mapping]] = ..., signal_value: _Optional[bytes] = ..., signalled_by: _Optional[str] = ..., signalled_at: _Optional[str] = ..., other_fields: _Optional[bytes] = ..., output_uri: _Optional[str] = ...) -> None: ...

class Condition(_message.Message):
    __slots__ = ("type", "status", "reason", "message", "last_transition_time", "observed_generation", "other_fields")
    TYPE_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    LAST_TRANSITION_TIME_FIELD_NUMBER: _ClassVar[int]
    OBSERVED_GENERATION_FIELD_NUMBER: _ClassVar[int]
    OTHER_FIELDS_FIELD_NUMBER: _ClassVar[int]
    type: str
    status: str
    reason: str
    message: str
    last_transition_time: str
    observed_generation: int
    other_fields: bytes
    def __init__(self, type: _Optional[str] = ..., status: _Optional[str] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ..., last_transition_time: _Optional[str] = ..., observed_generation: _Optional[int] = ..., other_fields: _Optional[bytes] = ...) -> None: ...

class PhaseTransition(_message.Message):
    __slots__ = ("phase", "occurred_at", "message", "other_fields")
    PHASE_FIELD_NUMBER: _ClassVar[int]
    OCCURRED_AT_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    OTHER_FIELDS_FIELD_NUMBER: _ClassVar[int]
    phase: str
    occurred_at: str
    message: str
    other_fields: bytes
    def __init__(self, phase: _Optional[str] = ..., occurred_at: _Optional[str] = ..., message: _Optional[str] = ..., other_fields: _Optional[bytes] = ...) -> None: ...

class ErrorState(_message.Message):
    __slots__ = ("code", "kind", "message", "recoverable", "other_fields")
    CODE_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    RECOVERABLE_FIELD_NUMBER: _ClassVar[int]
    OTHER_FIELDS_FIELD_NUMBER: _ClassVar[int]
    code: str
    kind: str
    message: str
    recoverable: bool
    other_fields: bytes
    def __init__(self, code: _Optional[str] = ..., kind: _Optional[str] = ..., message: _Optional[str] = ..., recoverable: _Optional[bool] = ..., other_fields: _Optional[bytes] = ...) -> None: ...
