from pathlib import Path
from typing import Any

import pytest

from etcd_actions.config import Config, Setting, load_config
from etcd_actions.errors import ConfigError

DEFAULT = b"/default/"


def load(environ: dict[str, str] | None = None, **flags: Any) -> Config:
    return load_config(environ or {}, default_prefix=DEFAULT, **flags)


def test_nothing_given() -> None:
    assert load() == Config(endpoints=None, prefix=DEFAULT, namespace=None, data_dir=None)


def test_flag_wins_over_variable() -> None:
    environ = {
        "ETCDCTL_ENDPOINTS": "env:1",
        "ETCD_ACTIONS_NAMESPACE": "env",
        "ETCD_ACTIONS_PREFIX": "/env/",
    }
    from_environment = load(environ)
    assert from_environment.endpoints == Setting("env:1", "ETCDCTL_ENDPOINTS")
    assert (from_environment.namespace, from_environment.prefix) == ("env", b"/env/")
    from_flags = load(environ, endpoints="flag:1", namespace="flag", prefix="/flag/")
    assert from_flags.endpoints == Setting("flag:1", "--endpoints")
    assert (from_flags.namespace, from_flags.prefix) == ("flag", b"/flag/")


def test_empty_variable_is_unset() -> None:
    environ = dict.fromkeys(
        ("ETCDCTL_ENDPOINTS", "ETCD_ACTIONS_NAMESPACE", "ETCD_ACTIONS_PREFIX"), ""
    )
    assert load(environ) == load()


@pytest.mark.parametrize("given", ["/a/b", "/a/b/", "/a/b//"])
def test_prefix_ends_in_one_slash(given: str) -> None:
    assert load(prefix=given).prefix == b"/a/b/"


@pytest.mark.parametrize(
    ("flag", "given"),
    [
        ("prefix", ""),
        ("prefix", "/"),
        ("prefix", "//"),
        ("prefix", "/\udcff/"),
        ("namespace", ""),
        ("namespace", "a/b"),
        ("namespace", "\udcff"),
    ],
)
def test_unusable_flag_is_named(flag: str, given: str) -> None:
    flags: dict[str, Any] = {flag: given}
    with pytest.raises(ConfigError, match=f"^--{flag}: "):
        load(**flags)


def test_unusable_variable_is_named() -> None:
    with pytest.raises(ConfigError, match=r"^ETCD_ACTIONS_PREFIX: "):
        load({"ETCD_ACTIONS_PREFIX": "/"})


def test_data_directory_and_endpoints_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match=r"--data-dir .* ETCDCTL_ENDPOINTS"):
        load_config(
            {"ETCDCTL_ENDPOINTS": "a:1"}, default_prefix=DEFAULT, data_dir=Path("somewhere")
        )
