"""The service that a command calls, if the settings name several."""

from __future__ import annotations

import trio

from etcd_actions.config import Config, settings
from etcd_actions.etcd.endpoints import Endpoint


async def address_of_service(config: Config) -> Endpoint:
    """The first service of the settings that accepts a connection; the first of all if none does.

    One alone is not tried: its first call reports the failure.
    """
    services = config[settings.SERVICE]
    assert services is not None
    for each in services if len(services) > 1 else ():
        with trio.move_on_after(config[settings.DIAL_TIMEOUT]):
            try:
                stream = await trio.open_tcp_stream(each.host, each.port)
            except (OSError, ValueError):
                continue
            await trio.aclose_forcefully(stream)
            return each
    return services[0]
