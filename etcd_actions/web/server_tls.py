"""The TLS files of a listener."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from etcd_actions._internal.argument_types import check_fields
from etcd_actions.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ServerTls:
    """The TLS files of a listener, in PEM.

    Attributes:
        cert: Its certificate, with the chain up to the authority.
        key: The key of the certificate, without a passphrase.
        client_ca: The authorities of clients' certificates; None if clients need none.
    """

    cert: Path
    key: Path
    client_ca: Path | None = None

    def __post_init__(self) -> None:
        check_fields(self)

    def context(self) -> ssl.SSLContext:
        """Load the files into a new context.

        Raises:
            ConfigError: A file is unusable.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["h2", "http/1.1"])
        self.load_into(context)
        return context

    def load_into(self, context: ssl.SSLContext) -> None:
        """Load the files into a context, which uses them for new connections.

        Raises:
            ConfigError: A file is unusable.
        """
        try:
            context.load_cert_chain(self.cert, self.key, password=lambda: "")
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"TLS of the listener: {self.cert} with {self.key} cannot be used: {error}"
            ) from None
        if self.client_ca is not None:
            try:
                context.load_verify_locations(self.client_ca)
            except (OSError, ValueError) as error:
                raise ConfigError(
                    f"TLS of the listener: {self.client_ca} cannot be used: {error}"
                ) from None
            context.verify_mode = ssl.CERT_REQUIRED
