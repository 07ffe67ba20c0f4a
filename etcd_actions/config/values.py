"""Parsers of the texts of settings.

Durations and truth values are those of etcdctl, whose names they have. Each function raises
:class:`ValueError` with the end of a sentence that begins with the flag or the variable; it never
quotes a text that can be secret.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeVar, cast
from urllib.parse import urlsplit

from etcd_actions._internal.quoting import quoted
from etcd_actions.errors import ConfigError
from etcd_actions.etcd.endpoints import Endpoint, check_host, parse_endpoints
from etcd_actions.model import NamespaceTemplate
from etcd_actions.web import Bind

Name = TypeVar("Name", bound=str)

_UNITS = {
    "ns": 1e-9,
    "us": 1e-6,
    "\N{MICRO SIGN}s": 1e-6,
    "\u03bcs": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "m": 60.0,
    "h": 3600.0,
}
_NUMBER = r"(?:[0-9]{1,64}(?:\.[0-9]{0,64})?|\.[0-9]{1,64})"
_PART = rf"({_NUMBER})({'|'.join(sorted(_UNITS, reverse=True))})"
_DURATION = re.compile(rf"(?:{_PART}){{1,16}}")
# Go's durations are nanoseconds in 63 bits.
_LONGEST = 2**63 / 1e9

LEAST_FOR_UPLOADS = 48 * 3600
_SIZES = {"": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}

_BOOLS = dict.fromkeys(("1", "t", "T", "TRUE", "true", "True"), True) | dict.fromkeys(
    ("0", "f", "F", "FALSE", "false", "False"), False
)


def _match(pattern: str, text: str, problem: str) -> re.Match[str]:
    """Match all of a text, or raise ValueError with the quoted text and the problem."""
    match = re.fullmatch(pattern, text)
    if match is None:
        raise ValueError(f"{quoted(text)} {problem}")
    return match


def duration(text: str) -> float:
    """A Go duration, such as ``5s``, ``1m30s`` or ``500ms``, in seconds. 0 needs no unit."""
    digits = text.removeprefix("+")
    if digits == "0":
        return 0.0
    if not _DURATION.fullmatch(digits):
        hint = f": did you mean {text}s?" if re.fullmatch(_NUMBER, text) else ""
        raise ValueError(f"{quoted(text)} is not a valid duration such as 5s, 1m30s or 500ms{hint}")
    seconds = sum(float(part[1]) * _UNITS[part[2]] for part in re.finditer(_PART, digits))
    if seconds >= _LONGEST:
        raise ValueError(f"{quoted(text)} is too long a duration")
    return seconds


def positive_duration(text: str) -> float:
    """A Go duration above 0, in seconds."""
    seconds = duration(text)
    if not seconds > 0:
        raise ValueError(f"{quoted(text)} leaves no time: give a duration above 0")
    return seconds


def time_of_uploads(text: str) -> float:
    """A Go duration of 48 hours or more, in seconds: the SDK reuses an upload for a day."""
    seconds = duration(text)
    if seconds < LEAST_FOR_UPLOADS:
        raise ValueError(
            f"{quoted(text)} is too short: the SDK reuses an upload for a day; give 48h or more"
        )
    return seconds


def seconds(text: str) -> float:
    """A Go duration, or a bare number of seconds."""
    return duration(f"{text}s" if re.fullmatch(_NUMBER, text) else text)


def boolean(text: str) -> bool:
    """A truth value of Go."""
    try:
        return _BOOLS[text]
    except KeyError:
        raise ValueError(f"{quoted(text)} is neither true nor false") from None


def port(text: str) -> int:
    """A TCP port, or 0 for any."""
    problem = "is not a valid port: give a number from 0 to 65535"
    number = int(_match(r"[0-9]{1,5}", text, problem)[0])
    if number > 65535:
        raise ValueError(f"{quoted(text)} {problem}")
    return number


def one_of(*names: Name) -> Callable[[str], Name]:
    """A parser that accepts these words only."""

    def parse(text: str) -> Name:
        for name in names:
            if name == text:
                return name
        raise ValueError(f"{quoted(text)} is none of {', '.join(names)}")

    return parse


def utf8(text: str) -> str:
    """Any text in UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("it is not UTF-8") from None
    return text


def endpoints(text: str) -> tuple[Endpoint, ...]:
    """The addresses of etcd's members."""
    try:
        return parse_endpoints(utf8(text))
    except ConfigError as error:
        raise ValueError(str(error)) from None


def service(text: str) -> Endpoint:
    """The address of one server other than etcd, with its port."""
    (endpoint, *more) = endpoints(text)
    if more or not text.rstrip("/").endswith(f":{endpoint.port}"):
        raise ValueError(f"{quoted(text)} is not a server: give host:port, such as 127.0.0.1:8090")
    return endpoint


def services(text: str) -> tuple[Endpoint, ...]:
    """The addresses of servers other than etcd, each with its port."""
    return tuple(dict.fromkeys(service(part.strip()) for part in text.split(",")))


def url(text: str) -> str:
    """The address of an HTTP server."""
    problem = "is not a valid URL: give http://host:port, without a user"
    _match(r"https?://[^\s/@]+(/\S*)?", utf8(text), problem)
    try:
        split = urlsplit(text)
        check_host(split.hostname or "")
        has_port = split.port != 0
    except ValueError:
        has_port = False
    if not has_port:
        raise ValueError(f"{quoted(text)} {problem}")
    return text.rstrip("/")


def bind(text: str) -> Bind | None:
    """The address of a listener: ``host:port``, with port 0 for any, or ``none``."""
    if text == "none":
        return None
    match = re.fullmatch(r"(?:\[([^\[\]]+)\]|([^:\[\]]+)):([0-9]{1,5})", utf8(text))
    if match is None or int(match[3]) > 65535 or (match[1] and ":" not in match[1]):
        raise ValueError(f"{quoted(text)} is not an address to listen on: give host:port, or none")
    host = match[1] or match[2]
    check_host(host)
    return Bind(host, int(match[3]))


def hosts(text: str) -> frozenset[str]:
    """Names or addresses of hosts, without ports."""
    names = [name.strip() for name in utf8(text).split(",")]
    for name in names:
        _match(
            r"[0-9A-Za-z._-]+|\[?[0-9A-Fa-f:.]+\]?",
            name,
            "is not a valid host: give a name or an address, without a port",
        )
    return frozenset(name.strip("[]") for name in names)


def names(text: str) -> tuple[str, ...]:
    """Names of projects or domains, each once, in their order."""
    found = dict.fromkeys(name.strip() for name in utf8(text).split(","))
    for name in found:
        _match(
            r"[0-9A-Za-z]([0-9A-Za-z_.-]{0,61}[0-9A-Za-z])?",
            name,
            "is not a valid name: give characters a to z, digits, dashes, dots and underscores",
        )
    return tuple(found)


def texts(text: str) -> tuple[str, ...]:
    """Texts without spaces, between commas."""
    found = tuple(each.strip() for each in utf8(text).split(","))
    if not all(re.fullmatch(r"\S+", each) for each in found):
        raise ValueError(f"{quoted(text)}: give texts without spaces, between commas")
    return found


def users(text: str) -> Literal["own", "any"] | frozenset[int]:
    """Users of this machine: ``own``, ``any``, or their user ids."""
    if text in ("own", "any"):
        return cast(Literal["own", "any"], text)
    numbers = [number.strip() for number in text.split(",")]
    if not all(re.fullmatch(r"[0-9]{1,10}", number) for number in numbers):
        raise ValueError(f"{quoted(text)} is neither own nor any: give these, or user ids (id -u)")
    return frozenset(map(int, numbers))


def size(text: str) -> int:
    """A number of bytes, such as ``4MiB``."""
    match = _match(
        r"([1-9][0-9]{0,9})(|KiB|MiB|GiB)",
        text,
        "is not a valid size: give a number of bytes, KiB, MiB or GiB",
    )
    return int(match[1]) * _SIZES[match[2]]


def share(text: str) -> float:
    """A fraction, such as ``0.5``; 0 for none."""
    problem = "is not a valid share: give a number from 0 to 1, such as 0.5"
    return float(_match(r"(0|1|0?\.[0-9]{1,9})", text, problem)[0])


def count(text: str) -> int:
    """A positive number."""
    return int(_match(r"[1-9][0-9]{0,8}", text, "is not a number: give 1 or more")[0])


def number(text: str) -> int:
    """A number; 0 is one."""
    return int(_match(r"[0-9]{1,9}", text, "is no number: give 0 or more")[0])


def cpus(text: str) -> float:
    """A positive number of CPUs, such as ``0.5``."""
    problem = "is no number of CPUs: give one such as 4 or 0.5"
    found = float(_match(r"[0-9]{1,6}(\.[0-9]{1,3})?", text, problem)[0])
    if not found:
        raise ValueError(f"{quoted(text)} {problem}")
    return found


def labels(text: str) -> dict[str, str]:
    """Labels, ``KEY=VALUE`` between commas; each key once."""
    found: dict[str, str] = {}
    for each in utf8(text).split(","):
        key, equals, value = each.strip().partition("=")
        if not (equals and re.fullmatch(r"\S+", key)):
            raise ValueError(f"{quoted(each)} is not a label: give one such as zone=a")
        if found.setdefault(key, value) != value:
            raise ValueError(f"{quoted(key)} has two values: give each label once")
    return found


def rate(text: str) -> float:
    """A number a second; 0 for no limit."""
    problem = "is not a valid rate: give a number a second, or 0 for no limit"
    return float(_match(r"[0-9]{1,9}(\.[0-9]{1,64})?", text, problem)[0])


def prefix(text: str) -> bytes:
    """The beginning of keys, with its last slash added."""
    if not text.strip("/"):
        raise ValueError(
            f"{quoted(text)} would be every key of the store: "
            "give a prefix such as /registry/flyte.org/taskactions/"
        )
    return utf8(text).encode().rstrip(b"/") + b"/"


def namespace(text: str) -> str:
    """A namespace, which is one part of a key."""
    if "/" in text:
        raise ValueError(
            f"{quoted(text)} is not a valid namespace: give a name without a slash, "
            "or leave it out for all namespaces"
        )
    return utf8(text)


def namespace_template(text: str) -> NamespaceTemplate:
    """Namespaces by project and domain."""
    try:
        return NamespaceTemplate(utf8(text))
    except ValueError as error:
        raise ValueError(f"{quoted(text)} {error}") from None


def file(text: str) -> Path:
    """A file, which its user opens."""
    if "\0" in text:
        raise ValueError(f"{quoted(text)} is not a path: it has a NUL character in it")
    return Path(text)


def blob_dir(text: str) -> Path | str:
    """A directory, which need not exist, or a URL that fsspec supports."""
    if "://" not in text:
        return directory(text)
    if not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^\s?#]+", utf8(text)) or "@" in text:
        raise ValueError(
            f"{quoted(text)} is not a valid URL of a store: give one such as s3://bucket/prefix, "
            "without a user, a query or blanks"
        )
    return text


def directory(text: str) -> Path:
    """A directory, which need not exist."""
    path = file(text)
    try:
        status = path.stat()
    except FileNotFoundError:
        return path
    except OSError as error:
        raise ValueError(f"{quoted(text)} cannot be examined: {error.strerror}") from None
    if not stat.S_ISDIR(status.st_mode):
        raise ValueError(f"{quoted(text)} is not a directory")
    return path
