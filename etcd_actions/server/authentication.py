"""Who a client is, by the token that it shows."""

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
    """Knows tokens that no file lists."""

    async def identify(self, token: str) -> Identity:
        """Whose token it is.

        Raises:
            Refusal: It is not accepted, or cannot be verified now.
        """
        ...


class Authentication:
    """Demands a token of each call.

    Args:
        tokens: Those that a file lists; None for none.
        verifier: Knows others; None for nobody.
    """

    def __init__(self, tokens: Tokens | None, verifier: Verifier | None) -> None:
        self._tokens = tokens
        self._verifier = verifier

    @property
    def is_demanded(self) -> bool:
        """Whether a client needs a token at all."""
        return self._tokens is not None or self._verifier is not None

    async def identify(self, authorization: str | None) -> Identity:
        """Who shows a header ``authorization``.

        Raises:
            Refusal: It is missing, or its token is not accepted, or cannot be verified now.
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
