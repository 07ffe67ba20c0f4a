"""Generated from schemas/ by scripts/generate-schemas, but for the pool of these messages."""

from __future__ import annotations

from typing import Final

from google.protobuf.descriptor_pool import DescriptorPool

# One pool holds one description of a name, and grpcio's packages put theirs into the common one.
POOL: Final = DescriptorPool()
