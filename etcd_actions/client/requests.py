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
    """The base of a class whose methods are requests.

    Attributes:
        containment: Counts the unexpected failures of the requests.
    """

    def __init__(self, containment: Containment) -> None:
        self.containment = containment
        self._closed = False

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("the client is closed")


def request(method: _Method) -> _Method:
    """Make a method the boundary of a request.

    The method raises only errors of this package, trio.ClosedResourceError and cancellations. Any
    other exception is counted and logged, and raised as UnexpectedFailure.
    """

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
