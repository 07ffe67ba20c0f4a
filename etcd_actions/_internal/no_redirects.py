"""HTTP by the standard library, without redirects: a token is for one server alone."""

from __future__ import annotations

import urllib.request
from typing import IO, Any


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self, req: object, fp: IO[bytes], code: int, msg: str, headers: object, newurl: str
    ) -> None:
        return None


def open_without_redirects(request: urllib.request.Request, timeout: float) -> Any:
    """Send a request; a redirect is an HTTPError. See ``urllib.request.urlopen``."""
    return urllib.request.build_opener(_NoRedirects).open(request, timeout=timeout)
