"""The services of the front door, put together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from etcd_actions.blobs import BlobStore, UrlSigner
from etcd_actions.client import ActionsClient
from etcd_actions.server.application import Route
from etcd_actions.server.front.data_proxy import DataProxy
from etcd_actions.server.front.local_files import LocalFiles
from etcd_actions.server.front.transfers import Transfers
from etcd_actions.server.methods import Service
from etcd_actions.server.streams import Streams


@dataclass(frozen=True, kw_only=True)
class Front:
    """What the SDK's own entry points need; made by who runs the service.

    Attributes:
        client: Who changes and reads actions; its containment is the boundary of what runs here.
        keepalive: After so many seconds without news a stream sends something, where it can.
        blobs: Where bundles, inputs and, unless a run says otherwise, outputs are.
        signer: Signs the URLs of transfers.
        reads_local_files: Whether files of runs are read from this machine, too.
        max_upload_bytes: Bytes of an upload, at most.
    """

    client: ActionsClient
    keepalive: float
    blobs: BlobStore
    signer: UrlSigner
    reads_local_files: bool = False
    max_upload_bytes: int = 5 << 30

    def services(self, streams: Streams) -> Iterable[Service]:
        """The services, each with its methods."""
        return (
            DataProxy(
                self.client,
                self.blobs,
                self._local_files,
                self.signer,
                self._transfers,
                most=self.max_upload_bytes,
            ),
        )

    def routes(self) -> Iterable[Route]:
        """What is served by plain HTTP."""
        return (self._transfers,)

    @cached_property
    def _local_files(self) -> LocalFiles | None:
        return LocalFiles() if self.reads_local_files else None

    @cached_property
    def _transfers(self) -> Transfers:
        """One for all ports: it bounds how many go on at once."""
        return Transfers(self.blobs, self._local_files, self.signer, self.max_upload_bytes)
