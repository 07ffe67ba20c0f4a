"""gRPC calls over HTTP/2 on trio, without threads and without grpcio.

A :class:`Channel` calls methods of one server, a :class:`Target`. It connects for the first call,
and again after the connection broke. Messages are bytes; the caller encodes and decodes them::

    async with open_channel(Target(host="127.0.0.1", port=2379)) as channel:
        answer = await channel.unary("/etcdserverpb.KV/Range", request, within=5)
        async with channel.stream("/etcdserverpb.Watch/Watch") as exchange:
            exchange.send(request)               # queued, never waits
            for message in await exchange.receive():
                ...

- **Time.** ``within`` is a deadline in seconds, which the server receives, too; ``math.inf`` for
  none. A cancelled call is reset at the server.
- **Errors.** Each failure of a server or a network is :class:`CallFailed` with a :class:`Code`.
  ``not_done`` means that the server certainly did nothing: the call was not sent, the server
  refused the stream, or ended the connection before it. Such a call is sent once more. Otherwise
  a write may have been done, or may still be. ``receive()`` raises ``trio.EndOfChannel`` after
  the server ended the stream with OK.
- **Reconnecting.** Each call connects if there is no connection; with
  ``ChannelSettings(backoff=...)`` calls fail at once for a while after a failed attempt.
- **TLS.** ``Target(tls=...)`` is a function that makes an ``ssl.SSLContext``, called in a thread
  for each new connection; it sets ``check_hostname`` and ``verify_mode``. ``server_name`` is the
  name in the certificate, if it is not the host.
- **Silence.** ``KeepAlive(time, timeout)`` pings during calls, and ends the connection within their
  sum after the last byte.
- **Memory.** An answer has at most ``largest_answer`` bytes; a stream whose reader stops holds its
  server back at 16 MiB.
- **Ownership.** :class:`Channel` takes a nursery; :func:`open_channel` has its own. Tasks end with
  ``close()``, not by a cancellation around them, so that calls in a shielded scope work.

The order of the modules is a contract in pyproject.toml.
"""

from etcd_actions.http2.channel import Channel, ChannelSettings, Metadata, open_channel
from etcd_actions.http2.errors import CallFailed, Code, ProtocolError
from etcd_actions.http2.exchange import Exchange
from etcd_actions.http2.live_connection import KeepAlive
from etcd_actions.http2.sockets import Target

__all__ = [
    "CallFailed",
    "Channel",
    "ChannelSettings",
    "Code",
    "Exchange",
    "KeepAlive",
    "Metadata",
    "ProtocolError",
    "Target",
    "open_channel",
]
