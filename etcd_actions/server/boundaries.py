"""The boundary around what answers one call."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from typing import Final, TypeVar

from connectrpc.errors import ConnectError

from etcd_actions._internal.containment import Containment
from etcd_actions.errors import EtcdActionsError
from etcd_actions.server.error_codes import failure
from etcd_actions.web import ClientGone

_Result = TypeVar("_Result")
_Response = TypeVar("_Response")


class _End:
    """What a stream gives at its end."""


_END: Final = _End()


async def guarded(containment: Containment, method: str, work: Awaitable[_Result]) -> _Result:
    """Let only errors out that have a code; anything else is contained, and told as INTERNAL.

    connectrpc lets a SystemExit or a group through, and tells the client nothing it can use.

    Raises:
        Refusal: Something unexpected was raised.
    """
    try:
        return await work
    except (ConnectError, EtcdActionsError, ClientGone):
        raise
    except BaseException as error:
        containment.caught("request", method, error)
    raise failure()


async def guarded_stream(
    containment: Containment, method: str, responses: AsyncIterator[_Response]
) -> AsyncIterator[_Response]:
    """The same for a stream: each of its steps has the boundary."""
    try:
        while True:
            response = await guarded(containment, method, anext(responses, _END))
            if isinstance(response, _End):
                return
            yield response
    finally:
        if isinstance(responses, AsyncGenerator):
            await guarded(containment, method, responses.aclose())
