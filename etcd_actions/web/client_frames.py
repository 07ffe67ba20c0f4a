"""Counts a client's HTTP/2 frames, and detects an incomplete one, before h2 parses them."""

from __future__ import annotations

from typing import Final

_PREFACE: Final = 24
_HEADER: Final = 9
# The largest frame without another setting.
_MOST_BYTES: Final = 2**14
_HEADERS, _SETTINGS, _CONTINUATION = 1, 4, 9
_ACK: Final = 1
_SETTING: Final = 6
_END_HEADERS: Final = 4


class Frames:
    """Follows the bytes of a client, from the preface on.

    Attributes:
        is_too_large: Whether a frame is larger than allowed. h2 detects that at the frame's end,
            and keeps its 16 MiB until then.
        settings: The number of settings; an empty frame counts as one.
        frames_of_settings: The number of SETTINGS frames.
    """

    def __init__(self) -> None:
        self.is_too_large = False
        self.settings = 0
        self.frames_of_settings = 0
        self._skip = _PREFACE
        self._header = bytearray()
        self._in_headers = False

    @property
    def is_partial(self) -> bool:
        """Whether a frame, or the headers of a request, are incomplete."""
        return bool(self._skip or self._header or self._in_headers)

    def feed(self, data: bytes) -> None:
        """Add bytes."""
        at, end = 0, len(data)
        while at < end:
            if self._skip:
                skipped = min(self._skip, end - at)
                self._skip -= skipped
                at += skipped
                continue
            missing = _HEADER - len(self._header)
            self._header += data[at : at + missing]
            at = min(end, at + missing)
            if len(self._header) == _HEADER:
                self._skip = int.from_bytes(self._header[:3], "big")
                self.is_too_large |= self._skip > _MOST_BYTES
                kind, flags = self._header[3], self._header[4]
                if kind == _SETTINGS and not flags & _ACK:
                    self.frames_of_settings += 1
                    self.settings += max(1, self._skip // _SETTING)
                if kind in (_HEADERS, _CONTINUATION):
                    self._in_headers = not flags & _END_HEADERS
                self._header.clear()
