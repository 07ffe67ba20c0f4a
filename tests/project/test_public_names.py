"""What ``import etcd_actions`` offers."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import etcd_actions


def test_every_public_name_is_there() -> None:
    """Names are looked up when first used, so a wrong home would go unnoticed."""
    for name in etcd_actions.__all__:
        assert getattr(etcd_actions, name) is not None
        assert name in dir(etcd_actions)


def test_the_page_of_the_api_lists_the_public_names() -> None:
    page = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
    table = page.partition("## `import etcd_actions`")[2].partition("\n## ")[0]
    cells = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    listed = [name for cell in cells for name in re.findall(r"`(\w+)`", cell)]
    assert sorted(listed) == sorted(etcd_actions.__all__)
    assert len(listed) <= 30


def test_another_name_is_an_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        etcd_actions.nothing  # noqa: B018


def test_importing_it_imports_nothing_heavy() -> None:
    """A command line with a password in it must get to hiding it at once."""
    code = (
        "import sys, etcd_actions.cli; "
        "print(*sorted({'click', 'grpc', 'msgspec', 'structlog', 'trio'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("room", ["cli", "executor"])
def test_no_module_beside_a_program_has_a_name_of_the_standard_library(room: str) -> None:
    """A file that is run as a program finds what is beside it before anything else."""
    directory = Path(etcd_actions.__file__).parent / room
    names = {path.stem for path in directory.glob("*.py")} - {"__init__"}
    assert names & sys.stdlib_module_names == set()
