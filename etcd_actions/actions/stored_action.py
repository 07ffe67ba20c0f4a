"""A stored action: its object with its key, and the checks of its identity."""

from __future__ import annotations

from etcd_actions.codecs import codec_of
from etcd_actions.errors import AnotherAction, NotFound
from etcd_actions.etcd.api import KeyValue
from etcd_actions.model import (
    ActionId,
    ActionObject,
    ActionUpdate,
    Incarnation,
    Keyspace,
    RunId,
    State,
    build_action_update,
)


class StoredAction(ActionObject, frozen=True, gc=False, omit_defaults=True, rename="camel"):
    """An object with its key and revisions in etcd."""

    kv: KeyValue = KeyValue(b"", b"", 0, 0, 0)
    """The key with its stored value."""

    @classmethod
    def of(cls, kv: KeyValue) -> StoredAction:
        """Decode a key's value.

        Raises:
            DecodeError: It is not a TaskAction.
        """
        decode = codec_of(kv.value).decode
        return cls.at(kv, decode(kv.value, key=kv.key, revision=kv.mod_revision))

    @classmethod
    def at(cls, kv: KeyValue, action: ActionObject) -> StoredAction:
        """The stored action of an object that was decoded before."""
        return cls(
            action.api_version,
            action.kind,
            action.metadata,
            action.spec,
            action.status,
            kv=kv,
        )

    @property
    def key(self) -> bytes:
        """The etcd key."""
        return self.kv.key

    @property
    def create_revision(self) -> int:
        """The revision of the object's creation."""
        return self.kv.create_revision

    @property
    def revision(self) -> int:
        """``mod_revision`` of the value."""
        return self.kv.mod_revision

    def state(self, create_revision: int = 0) -> State:
        """See :meth:`ActionObject.state`; by default with the key's own ``create_revision``."""
        return super().state(create_revision or self.create_revision)

    @property
    def incarnation(self) -> Incarnation:
        """The incarnation of the object."""
        return Incarnation(self.key, self.create_revision, self.metadata.uid)

    @property
    def resource_version(self) -> str:
        """The value of Kubernetes' ``metadata.resourceVersion``, which is never stored."""
        return str(self.revision)


def update_of(action: StoredAction) -> ActionUpdate:
    """The state of a stored action, as an update."""
    return build_action_update(
        action,
        key=action.key,
        revision=action.revision,
        create_revision=action.create_revision,
    )


def describe(action_id: ActionId) -> str:
    """The name of an action, for people."""
    return f"{action_id.name} of run {action_id.project}/{action_id.domain}/{action_id.run}"


def missing(action_id: ActionId, keys: Keyspace) -> str:
    """The message that an action does not exist, with its namespace if a template chooses that."""
    within = "" if keys.namespace is not None else f" in namespace {keys.namespace_of(action_id)}"
    return f"there is no action {describe(action_id)}{within}"


def same_run(one: ActionId | RunId, other: ActionId | RunId) -> bool:
    """Whether two actions are of one run; the organization counts if both have one."""
    if one.org and other.org and one.org != other.org:
        return False
    return (one.project, one.domain, one.run) == (other.project, other.domain, other.run)


def same_action(one: ActionId, other: ActionId) -> bool:
    """Whether two identities are of one action; the root of a run has two names."""
    return same_run(one, other) and one.object_name == other.object_name


def check_identity(found: ActionObject, expected: ActionId) -> None:
    """Check that an object is the expected action's: a key has neither project nor domain.

    Raises:
        NotFound: The object is another action's.
    """
    is_ = found.action_id
    if same_action(is_, expected):
        return
    other_org = is_.org and expected.org and is_.org != expected.org
    discreet = f"there is no action {describe(expected)}"
    raise AnotherAction(
        f"{discreet}: {expected.object_name} is action {describe(is_)}"
        + (f" in organisation {is_.org}, not {expected.org}" if other_org else ""),
        discreet,
    )


def check_incarnation(found: StoredAction, expected: Incarnation) -> None:
    """Check that an object is the expected one, and was not deleted and created again.

    Raises:
        NotFound: The object is another incarnation.
    """
    if not found.incarnation.may_be(expected):
        raise NotFound(
            f"the object of action {describe(found.action_id)} that is meant is gone: another was "
            f"made under its name, at revision {found.create_revision}"
        )
