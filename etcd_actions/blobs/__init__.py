"""Files of runs: bundles, inputs, outputs and reports, in a folder or an object store."""

from etcd_actions.blobs.deployment import Deployment
from etcd_actions.blobs.open_store import NoStore, open_blob_store
from etcd_actions.blobs.protocol import (
    Blob,
    BlobError,
    BlobExists,
    BlobInfo,
    BlobMismatch,
    BlobStore,
    BlobTooLarge,
    BlobUnusable,
    check_key,
    check_part,
)
from etcd_actions.blobs.signing import Grant, UrlSigner

__all__ = [
    "Blob",
    "BlobError",
    "BlobExists",
    "BlobInfo",
    "BlobMismatch",
    "BlobStore",
    "BlobTooLarge",
    "BlobUnusable",
    "Deployment",
    "Grant",
    "NoStore",
    "UrlSigner",
    "check_key",
    "check_part",
    "open_blob_store",
]
