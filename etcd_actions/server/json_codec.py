"""The form of JSON of messages, and the error for a message that has none."""

from __future__ import annotations

from connectrpc.code import Code
from connectrpc.codec import Codec
from connectrpc.compat import google_protobuf_binary_codec, google_protobuf_json_codec
from google.protobuf.json_format import SerializeToJsonError
from google.protobuf.message import Message

from etcd_actions.server.error_codes import Refusal


class _JsonCodec(Codec[Message, Message]):
    """Connect's codec; it refuses a message that JSON cannot express, such as one with NaN."""

    def __init__(self) -> None:
        self._codec = google_protobuf_json_codec()

    def name(self) -> str:
        """The name in content types."""
        return "json"

    def encode(self, message: Message) -> bytes:
        """The message as JSON."""
        try:
            encoded: bytes = self._codec.encode(message)
        except (SerializeToJsonError, ValueError) as error:
            # The data are a client's: it is not a failure of the service, and a retry cannot help.
            raise Refusal(
                Code.DATA_LOSS, f"JSON cannot express this response, use the binary form: {error}"
            ) from error
        return encoded

    def decode(self, data: bytes | bytearray, message_class: type[Message]) -> Message:
        """The message of JSON."""
        decoded: Message = self._codec.decode(data, message_class)
        return decoded


def codecs() -> list[Codec]:
    """The codecs of all methods."""
    return [google_protobuf_binary_codec(), _JsonCodec()]
