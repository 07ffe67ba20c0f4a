"""What ``import etcd_actions`` offers."""

from __future__ import annotations

import subprocess
import sys

import pytest

import etcd_actions


def test_every_public_name_is_there() -> None:
    """Names are looked up when first used, so a wrong home would go unnoticed."""
    for name in etcd_actions.__all__:
        assert getattr(etcd_actions, name) is not None
        assert name in dir(etcd_actions)


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
