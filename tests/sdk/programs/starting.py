"""A task that tells what its process had at its start, and what its environment changed."""

import inspect
import json
import os
import ssl
import sys
from pathlib import Path

import flyte

imported = sorted(sys.modules)

plain = flyte.TaskEnvironment(name="plain")
changed = flyte.TaskEnvironment(
    name="changed",
    env_vars={
        "SSL_CERT_FILE": os.environ.get("AUTHORITY", "/dev/null"),
        "OTEL_PROPAGATORS": "none",
    },
)


def _seen() -> dict[str, object]:
    # Only now: what is there by itself is told before.
    import certifi  # noqa: PLC0415
    import httpx  # noqa: PLC0415
    from opentelemetry import propagate  # noqa: PLC0415

    make = ssl.create_default_context
    ready = inspect.getclosurevars(make).nonlocals["self"]
    left = ready.count
    clients = httpx.create_ssl_context()
    return {
        "imported": imported,
        "left": left,
        "taken": left - ready.count,
        "authorities": [each["serialNumber"] for each in clients.get_ca_certs()],
        "expected": [
            each["serialNumber"]
            for each in inspect.unwrap(make)(
                cafile=os.environ.get("SSL_CERT_FILE") or certifi.where()
            ).get_ca_certs()
        ],
        "verifies": clients.verify_mode is ssl.CERT_REQUIRED and clients.check_hostname,
        "propagated": sorted(propagate.get_global_textmap().fields),
    }


@plain.task
async def at_the_start(directory: str) -> None:
    (Path(directory) / "plain").write_text(json.dumps(_seen()))


@changed.task
async def otherwise(directory: str) -> None:
    (Path(directory) / "changed").write_text(json.dumps(_seen()))
