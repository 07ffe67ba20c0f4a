"""Decodes this package's own values: JSON with the number of its form."""

from __future__ import annotations

from typing import Generic, Protocol, TypeVar

import msgspec

from etcd_actions.errors import DecodeError


class _Stored(Protocol):
    @property
    def form(self) -> int: ...


_T = TypeVar("_T", bound=_Stored)


class LaterForm(DecodeError):
    """A later version wrote the value: this version must not overwrite it."""


class StoredForm(Generic[_T]):
    """Decodes one kind of value.

    Args:
        type_: The struct of the value. Unknown fields are ignored, so a version that adds a
            necessary field has to change ``form``.
        what: The name of the value in messages.
        times: The fields that must be times with a zone.
        form: The number of the form that this version writes.
    """

    def __init__(
        self, type_: type[_T], what: str, times: tuple[str, ...] = (), form: int = 1
    ) -> None:
        self._decode = msgspec.json.Decoder(type_).decode
        self._what = what
        self._times = times
        self._form = form

    def decode(self, data: bytes, *, key: bytes = b"", revision: int = 0) -> _T:
        """Decode a value.

        Raises:
            DecodeError: It is not such a value.
            LaterForm: It has another form.
        """
        try:
            value = self._decode(data)
        except (msgspec.MsgspecError, RecursionError, ValueError) as error:
            raise DecodeError(f"no {self._what}: {error}", key=key, revision=revision) from None
        if value.form != self._form:
            reason = f"a {self._what} of form {value.form}, not {self._form}"
            raise LaterForm(reason, key=key, revision=revision)
        for name in self._times:
            if getattr(value, name).tzinfo is None:
                reason = f"the time {name} of a {self._what} has no zone"
                raise DecodeError(reason, key=key, revision=revision)
        return value
