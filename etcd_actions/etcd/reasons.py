"""What etcd means by its error texts.

Status codes are coarse, and a watch that is cancelled has only a text. The texts are those
of ``api/v3rpc/rpctypes/error.go`` in etcd's source, unchanged since 3.0. 3.5.1 sends one
error as the server's own text instead: that a token is older than a change of users.
"""

from __future__ import annotations

from etcd_actions import errors

_BY_TEXT: tuple[tuple[str, type[errors.EtcdError]], ...] = (
    ("required revision has been compacted", errors.Compacted),
    ("required revision is a future revision", errors.FutureRevision),
    ("database space exceeded", errors.NoSpace),
    ("request is too large", errors.RequestTooLarge),
    ("trying to send message larger than max", errors.RequestTooLarge),
    ("received message larger than max", errors.RequestTooLarge),
    ("requested lease not found", errors.LeaseNotFound),
    ("permission denied", errors.PermissionDenied),
    ("invalid auth token", errors.Unauthenticated),
    ("user name is empty", errors.Unauthenticated),
    ("authentication failed", errors.Unauthenticated),
    ("revision of auth store is old", errors.Unauthenticated),
    ("revision in header is old", errors.Unauthenticated),
    ("too many requests", errors.Unavailable),
)


def error_kind(text: str) -> type[errors.EtcdError] | None:
    """The error that etcd means by a status message or a cancel reason, None if unknown."""
    return next((kind for part, kind in _BY_TEXT if part in text), None)
