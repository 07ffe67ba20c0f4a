"""The identity of an object among all that have had its key."""

from __future__ import annotations

import hashlib
import re
from typing import Final

import msgspec

_MOST_OF_A_NAME: Final = 80
_DIGEST: Final = 40
_OTHER: Final = re.compile(r"[^A-Za-z0-9._-]")


class Incarnation(msgspec.Struct, frozen=True, gc=False):
    """One object, from its creation to its deletion.

    A key alone names several objects, one after the other. The ``uid`` is a field that any process
    may write: objects that were copied, restored or replayed may share one, or have none. Within
    one store no two objects of a key have the same ``create_revision``; a restored store may repeat
    it. Objects that agree in all three are taken for the same object.
    """

    key: bytes
    """The etcd key."""
    create_revision: int
    """etcd's, of the key; 0 where it is not known."""
    uid: str
    """``metadata.uid``, as stored."""

    def may_be(self, other: Incarnation) -> bool:
        """Whether both can be the same object; an unknown revision fits any other."""
        known = 0 not in (self.create_revision, other.create_revision)
        return (
            self.key == other.key
            and self.uid == other.uid
            and not (known and self.create_revision != other.create_revision)
        )

    @property
    def path_component(self) -> str:
        """A name for files about this object: the key's last part, and a digest.

        It has at most 121 characters of ``A-Z``, ``a-z``, ``0-9``, ``.``, ``_`` and ``-``, and does
        not begin with one of the last three. Different objects have different names.
        """
        digest = hashlib.sha256()
        for part in (
            self.key,
            str(self.create_revision).encode(),
            self.uid.encode(errors="surrogatepass"),
        ):
            digest.update(b"%d:" % len(part) + part)
        name = self.key.rpartition(b"/")[2].decode(errors="replace")
        readable = _OTHER.sub("_", name[:_MOST_OF_A_NAME]).lstrip("._-") or "action"
        return f"{readable}-{digest.hexdigest()[:_DIGEST]}"
