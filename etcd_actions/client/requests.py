"""The boundary around each request to a client."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import wraps
from typing import TypeVar, cast

import trio

from etcd_actions._internal.containment import Containment, describe
from etcd_actions.errors import EtcdActionsError, UnexpectedFailure

_Method = TypeVar("_Method", bound=Callable[..., Awaitable[object]])


class Requests:
    """Has methods that are requests.

    Attributes:
        containment: The boundaries of what it does, and of what is built on it.
    """

    def __init__(self, containment: Containment) -> None:
        self.containment = containment
        self._closed = False

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("the client is closed")


def request(method: _Method) -> _Method:
    """Make a method the boundary of a request: what it raises is an error of this package."""

    @wraps(method)
    async def contained(client: Requests, *args: object, **kwargs: object) -> object:
        client._check_open()
        try:
            return await method(client, *args, **kwargs)
        except EtcdActionsError:
            raise
        except trio.ClosedResourceError:
            client._check_open()
            raise
        except BaseException as error:
            failure = client.containment.caught("request", method.__name__, error)
            raise UnexpectedFailure(f"{method.__name__}: {describe(failure)}") from failure

    return cast(_Method, contained)
