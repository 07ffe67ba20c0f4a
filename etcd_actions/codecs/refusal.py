"""The boundary of a codec: any failure of a decoder becomes a DecodeError."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

from etcd_actions.errors import DecodeError

_Decoder = TypeVar("_Decoder", bound=Callable[..., Any])


def refusal(error: Exception, form: str, key: bytes, revision: int) -> DecodeError:
    """The error for a value that made a decoder fail.

    Args:
        error: The decoder's exception.
        form: The first word of the reason; may be empty.
        key: The etcd key.
        revision: The value's ``mod_revision``.
    """
    doubtful = False
    if isinstance(error, DecodeError):
        return error
    if isinstance(error, RecursionError):
        reason = "nested too deeply"
    elif isinstance(error, UnicodeDecodeError):
        reason = f"not UTF-8: {error}"
    elif isinstance(error, MemoryError):
        reason, doubtful = "there is not enough memory to decode it", True
    elif isinstance(error, ValueError):
        reason = str(error)
    else:
        reason = f"{type(error).__name__}: {error}"
    text = f"{form}: {reason}" if form else reason
    return DecodeError(text, key=key, revision=revision, doubtful=doubtful)


def refusing(form: str) -> Callable[[_Decoder], _Decoder]:
    """Have a decoder raise nothing but DecodeError.

    Args:
        form: The first word of the reason; may be empty.
    """

    def decorate(decoder: _Decoder) -> _Decoder:
        @functools.wraps(decoder)
        def decode(*args: Any, key: bytes = b"", revision: int = 0, **kwargs: Any) -> Any:
            try:
                return decoder(*args, key=key, revision=revision, **kwargs)
            except Exception as error:
                raise refusal(error, form, key, revision) from None

        return cast(_Decoder, decode)

    return decorate
