"""AuthMetadataService: the address at which a client gets a token. It is called without one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from connectrpc.code import Code
from flyteidl2.auth import auth_service_pb2 as pb

from etcd_actions.server.error_codes import Refusal

if TYPE_CHECKING:
    from etcd_actions.server.oidc import OidcIssuer

_NO_ISSUER: Final = (
    "this service has no OAuth server: give its token by auth_type='ExternalCommand' and a command "
    "that prints it, over https; if it needs no token, use insecure=True"
)


class AuthMetadataService:
    """Answers the SDK's calls before it logs in.

    Args:
        issuer: The OAuth server; None: each method raises a Refusal.
    """

    descriptor = pb.DESCRIPTOR.services_by_name["AuthMetadataService"]

    def __init__(self, issuer: OidcIssuer | None) -> None:
        self._issuer = issuer

    async def get_oauth2_metadata(
        self, _: pb.GetOAuth2MetadataRequest
    ) -> pb.GetOAuth2MetadataResponse:
        """The addresses at which clients request tokens of the OAuth server."""
        return await self._known_issuer().metadata()

    async def get_public_client_config(
        self, _: pb.GetPublicClientConfigRequest
    ) -> pb.GetPublicClientConfigResponse:
        """The settings by which a client without a secret requests a token."""
        return self._known_issuer().client_config()

    def _known_issuer(self) -> OidcIssuer:
        if self._issuer is None:
            raise Refusal(Code.UNIMPLEMENTED, _NO_ISSUER)
        return self._issuer
