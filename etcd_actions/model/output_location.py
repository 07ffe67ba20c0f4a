"""Where an action writes its outputs: Flyte's ``ComputeActionOutputPath``.

The path is computed and not stored, so it has to equal the executor's exactly.
"""

from __future__ import annotations

import functools
import re
from typing import Final, NamedTuple
from urllib.parse import quote, unquote_to_bytes

_ALPHABET: Final = "abcdefghijklmnopqrstuvwxyz0123456789"
_SHARDS: Final = tuple(first + second for first in _ALPHABET for second in _ALPHABET)


def fnv1a32(data: bytes) -> int:
    """Hash as Go's ``fnv.New32a`` does (FNV-1a, 32 bits)."""
    state = 0x811C9DC5
    for byte in data:
        state = ((state ^ byte) * 0x01000193) & 0xFFFFFFFF
    return state


_LONGEST_CACHED: Final = 512
"""Characters of a cached argument: a name or an address from outside may have a million."""


def shard(namespace: str, name: str) -> str:
    """The two characters that spread the outputs of objects over the buckets' key space.

    Cached: each event of an action needs it, at 2 µs for the hash.
    """
    if len(namespace) + len(name) > _LONGEST_CACHED:
        return _shard.__wrapped__(namespace, name)
    return _shard(namespace, name)


@functools.lru_cache(maxsize=1 << 16)
def _shard(namespace: str, name: str) -> str:
    text = f"{namespace}/{name}".encode(errors="replace")
    return _SHARDS[fnv1a32(text) % len(_SHARDS)]


def output_uri(
    namespace: str, name: str, run_output_base: str, action_name: str, attempt: int
) -> str:
    """Compute the directory of an action's outputs.

    ``<scheme>://<bucket>/<shard>/<path of the base>/<action>/<attempt>``; a query and a
    fragment of the base stay at the end. The base is read as Go's ``url.Parse`` reads it:
    the path is percent-encoded again, and one that is not absolute begins at the root.

    A path of the machine, ``/base`` or ``file:///base``, is the one exception, since Flyte's rule
    would write at the root of the file system. It gives ``<base>/<action>/<attempt>``, with
    nothing encoded.

    Args:
        namespace: The object's namespace.
        name: The object's name, ``<run>-<action>``.
        run_output_base: ``spec.runOutputBase``.
        action_name: ``spec.actionName``.
        attempt: The attempt from 1 on; 0 stands for the first, too.

    Returns:
        The URI; empty if the base is empty or Go could not parse it.
    """
    if _LOCAL.fullmatch(run_output_base):
        return f"{run_output_base.rstrip('/')}/{action_name}/{attempt or 1}"
    parse = _parse if len(run_output_base) <= _LONGEST_CACHED else _parse.__wrapped__
    base = parse(run_output_base)
    if base is None:
        return ""
    if base.opaque:
        return base.head + base.tail
    action = (
        action_name
        if action_name.isalnum() and action_name.isascii()
        else (_escape if len(action_name) <= _LONGEST_CACHED else _escape.__wrapped__)(action_name)
    )
    return f"{base.head}/{shard(namespace, name)}{base.path}/{action}/{attempt or 1}{base.tail}"


class _Base(NamedTuple):
    head: str
    """Scheme and authority, or all of an opaque URL."""
    path: str
    """Empty, or the path with a leading slash and without one at its end."""
    tail: str
    """Query and fragment."""
    opaque: bool = False


# The rest of this module follows Go's net/url: parse, setFragment, parseAuthority, String,
# shouldEscape.
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_LOCAL = re.compile(r"(?:file://)?/(?!/)[^?#\x00-\x1f\x7f]+")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_USERINFO = re.compile(r"[A-Za-z0-9\-._:~!$&'()*+,;=%@]*")
_HOST = re.compile(r"(?:[A-Za-z0-9\-_.~!$&'()*+,;=<>\"\u0080-\U0010ffff]|%[89A-Fa-f][0-9A-Fa-f])*")
_IPV6 = re.compile(r"\[[A-Za-z0-9\-_.~!$&'()*+,;=:<>\"]*\]")
_PORT = re.compile(r"(?::[0-9]*)?")


@functools.lru_cache(maxsize=4096)
def _parse(url: str) -> _Base | None:
    if not url or _CONTROL.search(url):
        return None
    rest, mark, fragment = url.partition("#")
    if _BAD_ESCAPE.search(fragment):
        return None
    tail = "#" + fragment if mark and fragment else ""
    scheme = ""
    if found := _SCHEME.match(rest):
        scheme, rest = found[1].lower() + ":", rest[found.end() :]
    elif rest.startswith(":"):
        return None
    rest, mark, query = rest.partition("?")
    tail = mark + query + tail
    authority = ""
    rooted = rest.startswith("/")
    if not rooted:
        if scheme and rest:
            return _Base(scheme + rest, "", tail, opaque=True)
        if ":" in rest.partition("/")[0]:
            return None
    elif rest.startswith("//") and (scheme or not rest.startswith("///")):
        authority, slash, path = rest[2:].partition("/")
        rest = slash + path
        rooted = False
    if not _is_authority(authority) or _BAD_ESCAPE.search(rest):
        return None
    path = _escape_bytes(unquote_to_bytes(rest).strip(b"/"))
    # Go writes the slashes of the authority unless there was one slash alone.
    slashes = "//" if authority or (scheme and not rooted) else ""
    return _Base(scheme + slashes + authority, "/" + path if path else "", tail)


def _is_authority(text: str) -> bool:
    user, at, host = text.rpartition("@")
    if at and not _USERINFO.fullmatch(user):
        return False
    end = (_IPV6.match(host) or _HOST.match(host)) if host.startswith("[") else _HOST.match(host)
    if end is None or (host.startswith("[") and not end.end()):
        return False
    return _PORT.fullmatch(host, end.end()) is not None


# The reserved characters that Go leaves alone in a path.
_PATH_SAFE: Final = "$&+,/:;=@"


def _escape_bytes(path: bytes) -> str:
    return quote(path, safe=_PATH_SAFE)


@functools.lru_cache(maxsize=4096)
def _escape(path: str) -> str:
    return quote(path, safe=_PATH_SAFE)
