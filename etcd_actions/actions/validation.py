"""What Flyte's schema and a Kubernetes API server would reject, checked before it is written.

On bare etcd nobody else looks, and an object with, say, an invalid label is one that an API
server serves and then never changes again. The limits are those of Flyte's CRD and of
Kubernetes' own validation.
"""

from __future__ import annotations

import re
from typing import Final

from etcd_actions.errors import InvalidArgument
from etcd_actions.model import TaskAction

MOST_BYTES: Final = 1_400_000
"""Of a value: etcd takes 1.5 MiB a request by default, and a mark adds to it."""

_MOST_ANNOTATIONS: Final = 256 * 1024
_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_LABEL_VALUE: Final = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?")
_PART: Final = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")

_LENGTHS: Final = (
    ("run_name", "action_id.run.name", 1, 30),
    ("project", "action_id.run.project", 1, 63),
    ("domain", "action_id.run.domain", 1, 63),
    ("action_name", "action_id.name", 1, 30),
    ("parent_action_name", "parent_action_name", 0, 30),
    ("cache_key", "task.cache_key", 0, 256),
    ("task_type", "task.spec.task_template.type", 0, 63),
    ("short_name", "task.spec.short_name", 0, 63),
    ("group", "group", 0, 256),
)
"""Field of the object, field of the request, least and most characters."""


def check(action: TaskAction) -> None:
    """Refuse an object that could not be created through an API server.

    Raises:
        InvalidArgument: It names the field of the request.
    """
    for field, path, least, most in _LENGTHS:
        text = getattr(action.spec, field)
        if not least <= len(text) <= most:
            wanted = f"{least} to {most}" if least else f"at most {most}"
            raise InvalidArgument(path, f"it has {len(text)} characters: give {wanted}")
    metadata = action.metadata
    if not _NAME.fullmatch(metadata.name) or len(metadata.name) > 253:
        raise InvalidArgument(
            "action_id",
            f"{metadata.name!r} is no name of an object: give run and action lower-case letters, "
            "digits and dashes only, and a letter or digit at both ends",
        )
    for label, text in metadata.labels.items():
        path = _LABEL_SOURCES.get(label, f"run_spec.labels[{label}]")
        _check_qualified(label, "run_spec.labels")
        if len(text) > 63 or not _LABEL_VALUE.fullmatch(text):
            raise InvalidArgument(
                path,
                f"{text[:80]!r} is no label: give at most 63 letters, digits, '-', '_' and '.', "
                "with a letter or digit at both ends",
            )
    size = 0
    for annotation, text in metadata.annotations.items():
        _check_qualified(annotation, "run_spec.annotations")
        size += len(annotation.encode()) + len(text.encode())
    if size > _MOST_ANNOTATIONS:
        raise InvalidArgument(
            "run_spec.annotations", f"they have {size} bytes: give at most {_MOST_ANNOTATIONS}"
        )


def check_size(value: bytes, field: str) -> None:
    """Refuse a value that etcd would not take.

    Flyte's SDK tries a ``RESOURCE_EXHAUSTED`` for ever, so it is the argument that is wrong.

    Raises:
        InvalidArgument: It is too large.
    """
    if len(value) > MOST_BYTES:
        raise InvalidArgument(
            field,
            f"the object has {len(value)} bytes, and etcd takes {MOST_BYTES}: make it smaller",
        )


_LABEL_SOURCES: Final = {
    "flyte.org/project": "action_id.run.project",
    "flyte.org/domain": "action_id.run.domain",
    "flyte.org/run": "action_id.run.name",
    "flyte.org/action": "action_id.name",
}


def _check_qualified(name: str, path: str) -> None:
    """Kubernetes' form of the names of labels and annotations: ``[domain/]name``."""
    domain, slash, rest = name.rpartition("/")
    good = len(rest) <= 63 and _PART.fullmatch(rest)
    if slash:
        good = good and len(domain) <= 253 and _NAME.fullmatch(domain)
    if not good:
        raise InvalidArgument(
            f"{path}[{name[:80]}]",
            "no name of a label or annotation: give letters, digits, '-', '_' and '.', "
            "maybe after a domain and a slash",
        )
