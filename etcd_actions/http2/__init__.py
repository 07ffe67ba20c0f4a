"""gRPC calls over HTTP/2 on trio: no threads, and nothing of grpcio.

A :class:`Channel` calls methods of one server, given as :class:`Target`. It connects when it is
first needed, and again when the connection is gone. Messages are bytes: who encodes and decodes
them is its caller::

    async with open_channel(Target(host="127.0.0.1", port=2379)) as channel:
        answer = await channel.unary("/etcdserverpb.KV/Range", request, within=5)
        async with channel.stream("/etcdserverpb.Watch/Watch") as exchange:
            exchange.send(request)               # queued, never waits
            for message in await exchange.receive():
                ...

- **Time.** ``within`` is a deadline in seconds, which the server is told, too; ``math.inf``
  for none. A call that is cancelled is reset at the server.
- **Errors.** Everything that a server or a network does is :class:`CallFailed`, with a
  :class:`Code`. Its ``not_done`` says that the server certainly did nothing: it was not sent,
  the server refused the stream, or ended the connection before it. Such a call is sent again
  once by itself. Without it a write may have been done, or may still be. ``receive()`` raises
  ``trio.EndOfChannel`` where the server ended the stream with OK.
- **Reconnecting.** Each call connects where there is no connection; with
  ``ChannelSettings(backoff=...)`` calls fail at once for a while after a failed try.
- **TLS.** ``Target(tls=...)`` is a function that makes an ``ssl.SSLContext``, called in a thread
  for each new connection; it sets ``check_hostname`` and ``verify_mode``. ``server_name`` is the
  name that the certificate is for, where it is not the host.
- **Silence.** ``KeepAlive(time, timeout)`` pings while a call is under way, and ends the
  connection within their sum of the last sign of life.
- **Memory.** An answer is at most ``largest_answer`` bytes; a stream whose reader stops holds its
  server back at 16 MiB.
- **Ownership.** :class:`Channel` takes a nursery; :func:`open_channel` brings its own. Tasks end
  with ``close()``, not by a cancellation around them, so that calls in a shielded scope work.

Inside, from below: ``frames`` and ``headers`` (bytes), ``connection`` and ``stream`` (HTTP/2
without I/O), ``messages`` (gRPC's framing and status), ``wire`` (a socket, TLS), ``link`` (a
connection with its tasks), ``exchange`` and ``channel`` (calls).
"""

from etcd_actions.http2.channel import Channel, ChannelSettings, Metadata, open_channel
from etcd_actions.http2.errors import CallFailed, Code, ProtocolError
from etcd_actions.http2.exchange import Exchange
from etcd_actions.http2.link import KeepAlive
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
