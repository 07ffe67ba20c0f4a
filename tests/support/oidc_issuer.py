"""A small OpenID Connect issuer over HTTP: discovery, keys, and tokens for a client's secret."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

CLIENT = ("robot", "its-secret")
AUDIENCE = "etcd-actions"


@cache
def _key(number: int) -> Any:
    """Made once a process: an RSA key takes a quarter of a second."""
    if number % 2:
        return rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return ec.generate_private_key(ec.SECP256R1())


class SmallIssuer:
    """What it says can be changed while it runs.

    Attributes:
        asked: The paths that were asked for, in order.
        fails: Whether it answers 503 to everything.
        speaks: Cleared, it answers nothing until it is set again.
        document: What it says of itself beside where its things are.
    """

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.asked: list[str] = []
        self.fails = False
        self.speaks = Event()
        self.speaks.set()
        self.document: dict[str, Any] = {}
        self._made = 0
        self.rotate()

    def rotate(self) -> None:
        """Have another key, and only that."""
        self._made += 1
        self.kid = f"key-{self._made}"
        self._key = _key(self._made)
        self.algorithm = "RS256" if self._made % 2 else "ES256"

    def public_pem(self) -> bytes:
        pem: bytes = self._key.public_key().public_bytes(
            Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
        )
        return pem

    def token(
        self, *, key: Any = None, headers: dict[str, str] | None = None, **changed: Any
    ) -> str:
        claims = {"iss": self.url, "aud": AUDIENCE, "sub": "alice", "exp": time.time() + 300}
        claims |= changed
        claims = {name: value for name, value in claims.items() if value is not None}
        headers = headers or {"kid": self.kid}
        return jwt.encode(claims, key or self._key, self.algorithm, headers=headers)

    def answer(self, path: str, authorization: str) -> tuple[int, object]:
        self.asked.append(path)
        self.speaks.wait()
        if self.fails:
            return 503, {}
        match path:
            case "/.well-known/openid-configuration":
                return 200, {
                    "issuer": self.url,
                    "authorization_endpoint": f"{self.url}/authorize",
                    "token_endpoint": f"{self.url}/token",
                    "jwks_uri": f"{self.url}/keys",
                    "grant_types_supported": ["client_credentials"],
                    **self.document,
                }
            case "/keys":
                kind = jwt.algorithms.RSAAlgorithm if self._made % 2 else jwt.algorithms.ECAlgorithm
                public = kind.to_jwk(self._key.public_key(), as_dict=True)
                return 200, {"keys": ["no key", {**public, "kid": self.kid, "use": "sig"}]}
            case "/token":
                wanted = base64.b64encode(":".join(CLIENT).encode()).decode()
                if authorization != f"Basic {wanted}":
                    return 401, {"error": "invalid_client"}
                return 200, {"access_token": self.token(sub="robot"), "expires_in": 300}
            case _:
                return 404, {}


@contextmanager
def small_issuer() -> Iterator[SmallIssuer]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            status, value = issuer.answer(self.path, self.headers.get("authorization", ""))
            body = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        issuer = SmallIssuer(server.server_address[1])
        thread = Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield issuer
        finally:
            server.shutdown()
            thread.join()
