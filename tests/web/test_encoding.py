"""Headers are encoded so that every decoder reads them."""

from __future__ import annotations

from hpack import Decoder
from hypothesis import given
from hypothesis import strategies as st

from etcd_actions.web.encoding import PlainEncoder

texts = st.one_of(st.binary(max_size=30), st.integers(100, 20_000).map(lambda size: b"x" * size))
headers = st.lists(
    st.one_of(st.just((b":status", b"200")), st.tuples(st.binary(min_size=1, max_size=200), texts)),
    max_size=8,
)


@given(st.lists(headers, min_size=1, max_size=3))
def test_what_is_encoded_is_decoded(blocks: list[list[tuple[bytes, bytes]]]) -> None:
    encoder, decoder = PlainEncoder(), Decoder(max_header_list_size=2**20)
    for number, block in enumerate(blocks):
        assert list(decoder.decode(encoder.encode(block), raw=True)) == block
        # The client may lower its limit at any time; hpack refuses a block that ignores that.
        size = 1000 >> number
        encoder.header_table_size = decoder.max_allowed_table_size = size
