"""The identity of a client, by its token."""

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
    """Verifies tokens that no file lists."""

    async def identify(self, token: str) -> Identity:
        """Return the identity of a token, or raise a Refusal."""


class Authentication:
    """Requires a token of each call.

    Args:
        tokens: The tokens of a file; None for none.
        verifier: Verifies others; None for none.
    """

    def __init__(self, tokens: Tokens | None, verifier: Verifier | None) -> None:
        self._tokens = tokens
        self._verifier = verifier

    @property
    def is_required(self) -> bool:
        """Whether a client needs a token."""
        return self._tokens is not None or self._verifier is not None

    async def identify(self, authorization: str | None) -> Identity:
        """The identity that a header ``authorization`` proves.

        Raises:
            Refusal: It is missing, not accepted, or cannot be verified now.
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
