"""Checks objects before they are written, as Flyte's schema and a Kubernetes API server do.

Without an API server no other process does. An API server serves a stored object with an invalid
label, but refuses each later change of it. The limits are those of Flyte's CRD and of Kubernetes'
own validation.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from typing import Final

from etcd_actions.errors import InvalidArgument
from etcd_actions.model import (
    LABEL_ACTION,
    LABEL_COMPLETED_TIME,
    LABEL_DOMAIN,
    LABEL_PROJECT,
    LABEL_RUN,
    LABEL_TERMINAL_STATUS_RECORDED,
    LABEL_TERMINATION_STATUS,
    OWN_DOMAIN,
    ActionId,
    ActionObject,
)

MOST_BYTES: Final = 1_400_000
"""The most bytes of a value: etcd accepts 1.5 MiB by default, and the mark needs some."""

_MOST_ANNOTATIONS: Final = 256 * 1024
_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_LABEL_VALUE: Final = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?")
_PART: Final = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")

_MOST_OF_A_NAME: Final = 30
_MOST_OF_A_QUALIFIED: Final = 253 + len("/") + 63
_LENGTHS: Final = (
    ("cache_key", "task.cache_key", 256),
    ("task_type", "task.spec.task_template.type", 63),
    ("short_name", "task.spec.short_name", 63),
    ("group", "group", 256),
)
"""The field of the object, the field of the request, and the most characters."""

_END_LABELS: Final = (
    LABEL_TERMINAL_STATUS_RECORDED,
    LABEL_TERMINATION_STATUS,
    LABEL_COMPLETED_TIME,
)


def check_names(action_id: ActionId, parent: str) -> None:
    """Refuse names that are not allowed in a key or as the name of an object.

    Args:
        action_id: The action.
        parent: The parent's name; empty for a root.

    Raises:
        InvalidArgument: A name is not allowed; it names the field of the request.
    """
    for field, text, most in (
        ("action_id.run.project", action_id.project, 63),
        ("action_id.run.domain", action_id.domain, 63),
        ("action_id.run.name", action_id.run, _MOST_OF_A_NAME),
        ("action_id.name", action_id.name, _MOST_OF_A_NAME),
    ):
        if text in ("", ".", "..") or "/" in text:
            raise InvalidArgument(
                field, f"{text[:80]!r} is not a valid name: give one, without a slash"
            )
        _check_length(field, text, most)
    _check_length("action_id.run.org", action_id.org, 63)
    if "/" in parent:
        raise InvalidArgument("parent_action_name", "a name has no slash")
    _check_length("parent_action_name", parent, _MOST_OF_A_NAME)
    # It has at most 61 characters; Kubernetes accepts 253.
    if not _NAME.fullmatch(action_id.object_name):
        raise InvalidArgument(
            "action_id",
            f"{action_id.object_name!r} is not a valid name of an object: give run and action "
            "lower-case letters, digits, dashes and dots, with a letter or digit at both ends",
        )


def check_run_spec(labels: Iterable[str], annotations: Iterable[str]) -> None:
    """Refuse the names of reserved labels and annotations.

    With a label about the end of an action, its terminal state would not be reported, or it would
    be deleted while it runs. With an annotation of ours it could count as another action.

    Raises:
        InvalidArgument: A name is reserved; it names the label or annotation.
    """
    for label in labels:
        if label in _END_LABELS or label.startswith(OWN_DOMAIN + "/"):
            raise InvalidArgument(f"run_spec.labels[{label[:80]}]", "it is reserved: omit it")
    for annotation in annotations:
        if annotation.startswith(OWN_DOMAIN + "/"):
            raise InvalidArgument(
                f"run_spec.annotations[{annotation[:80]}]", "it is reserved: omit it"
            )


def check(action: ActionObject) -> None:
    """Refuse an object that could not be created through an API server.

    Its names have passed :func:`check_names`.

    Raises:
        InvalidArgument: A value is not allowed; it names the field of the request.
    """
    for field, path, most in _LENGTHS:
        _check_length(path, getattr(action.spec, field), most)
    metadata = action.metadata
    for label, text in metadata.labels.items():
        _check_qualified(label, label, "run_spec.labels")
        if len(text) > 63 or not _LABEL_VALUE.fullmatch(text):
            raise InvalidArgument(
                _LABEL_SOURCES.get(label, f"run_spec.labels[{label[:80]}]"),
                f"{text[:80]!r} is not a valid label: give at most 63 letters, digits, '-', '_' "
                "and '.', with a letter or digit at both ends",
            )
    size = 0
    for annotation, text in metadata.annotations.items():
        # An API server accepts capitals in the domain of an annotation.
        _check_qualified(annotation.lower(), annotation, "run_spec.annotations")
        size += len(annotation.encode()) + len(text.encode())
    if size > _MOST_ANNOTATIONS:
        raise InvalidArgument(
            "run_spec.annotations", f"they have {size} bytes: give at most {_MOST_ANNOTATIONS}"
        )


def check_size(value: bytes, field: str) -> None:
    """Refuse a value that etcd would not accept.

    It is an invalid argument, because Flyte's SDK retries ``RESOURCE_EXHAUSTED`` without limit.

    Raises:
        InvalidArgument: It is too large.
    """
    if len(value) > MOST_BYTES:
        raise InvalidArgument(
            field,
            f"the object has {len(value)} bytes, and etcd takes {MOST_BYTES}: make it smaller",
        )


_LABEL_SOURCES: Final = {
    LABEL_PROJECT: "action_id.run.project",
    LABEL_DOMAIN: "action_id.run.domain",
    LABEL_RUN: "action_id.run.name",
    LABEL_ACTION: "action_id.name",
}


def _check_length(field: str, text: str, most: int) -> None:
    if len(text) > most:
        raise InvalidArgument(field, f"it has {len(text)} characters: give at most {most}")


def _check_qualified(checked: str, name: str, path: str) -> None:
    """Refuse a name that has not Kubernetes' form ``[domain/]name``."""
    if len(checked) > _MOST_OF_A_QUALIFIED or not _is_qualified(checked):
        raise InvalidArgument(
            f"{path}[{name[:80]}]",
            "no name of a label or annotation: give letters, digits, '-', '_' and '.', "
            "maybe after a domain and a slash",
        )


@functools.lru_cache(maxsize=1024)
def _is_qualified(name: str) -> bool:
    """Whether a name has that form; cached, because objects share most names."""
    domain, slash, rest = name.rpartition("/")
    if len(rest) > 63 or not _PART.fullmatch(rest):
        return False
    return not slash or (len(domain) <= 253 and bool(_NAME.fullmatch(domain)))
