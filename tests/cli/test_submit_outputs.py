"""``submit`` reads what a task left, which may be anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from etcd_actions.cli.submit_main import Unusable, read_outputs
from tests.support.odd_files import KINDS


@pytest.mark.parametrize("kind", KINDS)
def test_only_a_regular_file_is_opened(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "outputs.pb"
    KINDS[kind][0](path)
    with pytest.raises(Unusable, match=f"{path} is not a regular file"):
        read_outputs(path)


def test_what_is_regular_is_read_up_to_a_limit(tmp_path: Path) -> None:
    path = tmp_path / "outputs.pb"
    assert read_outputs(path) is None
    path.write_bytes(b"x")
    assert read_outputs(path) == b"x"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(Unusable, match="larger than"):
        read_outputs(path)
