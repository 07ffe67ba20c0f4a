"""Identifies clients by their tokens."""

from __future__ import annotations

from typing import Final, Protocol

from connectrpc.code import Code

from etcd_actions.server.error_codes import Refusal
from etcd_actions.server.tokens import Identity, Tokens

HOW_TO: Final = (
    "The SDK sends none with insecure=True: give it an https:// endpoint and "
    "auth_type='ExternalCommand' with a command that prints the token (admin.authType and "
    "admin.command in its config.yaml)"
)


class Verifier(Protocol):
    """Verifies tokens that are not in a file, such as those of an OpenID Connect issuer."""

    async def identify(self, token: str) -> Identity:
        """Return the identity of a token, or raise a Refusal."""


class Authentication:
    """Identifies the client of each call by its token.

    Args:
        tokens: The tokens of a file; None for no file.
        verifier: Verifies tokens that the file does not have; None accepts only those of the file.
    """

    def __init__(self, tokens: Tokens | None, verifier: Verifier | None) -> None:
        self._tokens = tokens
        self._verifier = verifier

    @property
    def is_required(self) -> bool:
        """Whether a client needs a token."""
        return self._tokens is not None or self._verifier is not None

    async def identify(self, authorization: str | None) -> Identity:
        """The identity of the token in a header ``authorization``.

        Raises:
            Refusal: The header is missing, its token is not accepted, or cannot be verified now.
        """
        if authorization is None:
            raise Refusal(
                Code.UNAUTHENTICATED, f"a token is needed: authorization: Bearer TOKEN. {HOW_TO}"
            )
        scheme, _, token = authorization.partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token:
            raise Refusal(Code.UNAUTHENTICATED, "the token is not accepted: send Bearer TOKEN")
        identity = None if self._tokens is None else self._tokens.find(token)
        if identity is None and self._verifier is not None:
            identity = await self._verifier.identify(token)
        if identity is None:
            raise Refusal(Code.UNAUTHENTICATED, "the token is not accepted")
        return identity
