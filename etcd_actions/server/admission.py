"""Who may ask, and how often."""

from __future__ import annotations

import hmac
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog
from connectrpc.code import Code

from etcd_actions.errors import ConfigError
from etcd_actions.named_files import read_named_file, text_of
from etcd_actions.server.codes import Refusal

_MOST_CLIENTS = 10_000
_MOST_TOKEN_BYTES = 1024 * 1024

_log = structlog.get_logger(__name__)


class Tokens:
    """The tokens that clients may show: the lines of a file that is read again when it changes.

    Empty lines and lines that begin with ``#`` do not count.

    Raises:
        ConfigError: The file cannot be read, or holds no token.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int, int] | None = None
        self._tokens: Sequence[bytes] = ()
        self._refresh()

    def __repr__(self) -> str:
        return f"Tokens({str(self._path)!r})"

    def number_of(self, authorization: str | None) -> int:
        """The place of the token that a header ``authorization`` shows, among those of the file.

        Raises:
            Refusal: It shows none, or another one.
        """
        if authorization is None:
            raise Refusal(Code.UNAUTHENTICATED, "a token is needed: authorization: Bearer TOKEN")
        scheme, _, token = authorization.partition(" ")
        try:
            self._refresh()
        except ConfigError as error:
            # Those that were read before go on to count.
            _log.warning("tokens_unreadable", error=str(error))
        found = -1
        shown = token.strip().encode(errors="surrogateescape")
        for number, known in enumerate(self._tokens):
            # All are compared, so that the time says nothing.
            if hmac.compare_digest(known, shown):
                found = number
        if scheme.lower() != "bearer" or found < 0:
            raise Refusal(Code.UNAUTHENTICATED, "the token is not accepted")
        return found

    def _refresh(self) -> None:
        try:
            status = self._path.stat()
            seen = (status.st_ino, status.st_size, status.st_mtime_ns)
            if seen == self._seen:
                return
            text = text_of(read_named_file(self._path, _MOST_TOKEN_BYTES))
        except OSError as error:
            raise ConfigError(f"tokens: {self._path} cannot be read: {error.strerror}") from None
        except ValueError as error:
            raise ConfigError(f"tokens: {self._path}: {error}") from None
        lines = text.encode().splitlines()
        tokens = [line.strip() for line in lines]
        tokens = [token for token in tokens if token and not token.startswith(b"#")]
        if not tokens:
            raise ConfigError(f"tokens: {self._path} holds none: write one a line")
        self._seen, self._tokens = seen, tokens


class RateLimit:
    """A bucket of tokens for each client: so many requests a second, twice as many in a burst.

    Args:
        rate: Requests a second; 0 for no limit.
        clock: Seconds that only grow.
    """

    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._burst = max(1.0, 2 * rate)
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, client: str) -> None:
        """Count a request.

        Raises:
            Refusal: It is one too many.
        """
        if not self._rate:
            return
        now = self._clock()
        left, at = self._buckets.pop(client, (self._burst, now))
        left = min(self._burst, left + (now - at) * self._rate)
        allowed = left >= 1
        self._buckets[client] = (left - 1 if allowed else left, now)
        if len(self._buckets) > _MOST_CLIENTS:
            # Who was longest silent has a full bucket by now, or nearly so.
            self._buckets.popitem(last=False)
        if not allowed:
            raise Refusal(
                Code.RESOURCE_EXHAUSTED, f"more than {self._rate:g} requests a second: slow down"
            )
