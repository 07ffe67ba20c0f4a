"""Names with numbers: in the order of the numbers."""

from itertools import pairwise

from etcd_actions.cli.formats.natural_order import natural_key
from tests.support.names_in_order import IN_ORDER


def test_names_are_in_the_order_of_their_numbers() -> None:
    keys = [natural_key(name) for name in IN_ORDER]
    assert [pair for pair in pairwise(keys) if not pair[0] < pair[1]] == []
