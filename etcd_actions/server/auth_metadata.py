"""AuthMetadataService: where a client gets a token; it is asked without one."""

from __future__ import annotations

from typing import Final, Protocol

from connectrpc.code import Code
from flyteidl2.auth import auth_service_pb2 as pb

from etcd_actions.server.error_codes import Refusal
from etcd_actions.server.methods import Methods

AUTH_METADATA: Final = "flyteidl2.auth.AuthMetadataService"

_NO_ISSUER = (
    "this service has no OAuth server: give its token by auth_type='ExternalCommand' and a command "
    "that prints it, over https; where it asks for no token, use insecure=True"
)


class Issuer(Protocol):
    """What is known of the OAuth server whose tokens are accepted."""

    async def metadata(self) -> pb.GetOAuth2MetadataResponse:
        """Where it is asked for tokens."""
        ...

    def client_config(self) -> pb.GetPublicClientConfigResponse:
        """How a client without a secret asks it."""
        ...


class AuthMetadataService:
    """Answers what the SDK asks before it logs in.

    Args:
        issuer: The OAuth server; None for none.
    """

    def __init__(self, issuer: Issuer | None) -> None:
        self._issuer = issuer

    def add_to(self, methods: Methods) -> None:
        """Add its methods to those that are served."""
        methods.unary(
            AUTH_METADATA,
            "GetOAuth2Metadata",
            pb.GetOAuth2MetadataRequest,
            pb.GetOAuth2MetadataResponse,
            self.get_oauth2_metadata,
        )
        methods.unary(
            AUTH_METADATA,
            "GetPublicClientConfig",
            pb.GetPublicClientConfigRequest,
            pb.GetPublicClientConfigResponse,
            self.get_public_client_config,
        )

    async def get_oauth2_metadata(
        self, _: pb.GetOAuth2MetadataRequest
    ) -> pb.GetOAuth2MetadataResponse:
        """Where the OAuth server is asked for tokens.

        Raises:
            Refusal: There is none.
        """
        if self._issuer is None:
            raise Refusal(Code.UNIMPLEMENTED, _NO_ISSUER)
        return await self._issuer.metadata()

    async def get_public_client_config(
        self, _: pb.GetPublicClientConfigRequest
    ) -> pb.GetPublicClientConfigResponse:
        """How a client without a secret asks the OAuth server.

        Raises:
            Refusal: There is none.
        """
        if self._issuer is None:
            raise Refusal(Code.UNIMPLEMENTED, _NO_ISSUER)
        return self._issuer.client_config()
