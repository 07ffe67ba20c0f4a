"""What flags and variables come to."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from etcd_actions.config import (
    SETTINGS,
    Config,
    Environment,
    File,
    Flags,
    Resolution,
    Setting,
    resolve,
    unknown_variables,
)
from etcd_actions.config.kinds import HIDDEN
from etcd_actions.config.settings import (
    CODEC,
    COLLECT_ORPHANS,
    DATA_DIR,
    EMBEDDED_PORT,
    GRACE,
    KEEPALIVE_TIME,
    LOG_LEVEL,
    MAX_STREAMS,
    NAMESPACE,
    PREFIX,
    STATS_INTERVAL,
)
from etcd_actions.config.sources import Given, UnknownVariable
from etcd_actions.errors import ConfigError
from etcd_actions.etcd import ConnectionSettings, Tls
from etcd_actions.etcd.endpoints import Endpoint
from etcd_actions.model import DEFAULT_KEY_PREFIX
from tests.cli.command import finish
from tests.support.everyday import first_everyday
from tests.support.table import table

# Two usable texts for each setting.
SAMPLES: dict[str, tuple[str, str]] = {
    "config": ("a", "b"),
    "endpoints": ("a:1", "b:2"),
    "transport": ("gateway", "grpc"),
    "prefix": ("/a/", "/b/"),
    "namespace": ("a", "b"),
    "namespace_template": ("{{ project }}", "{project}-{domain}"),
    "codec": ("msgpack", "protobuf"),
    "finalizer": ("true", "false"),
    "cacert": ("a", "b"),
    "blob_dir": ("a", "s3://bucket/x"),
    "ray_address": ("http://a:8265", "https://b/ray"),
    "ray_token_file": ("a", "b"),
    "tasks_listen": ("127.0.0.1:1", "10.0.0.1:2"),
    "max_upload_bytes": ("1MiB", "2MiB"),
    "cert": ("a", "b"),
    "key": ("a", "b"),
    "tls_server_name": ("a", "b"),
    "insecure_transport": ("false", "true"),
    "insecure_skip_tls_verify": ("true", "false"),
    "user": ("a", "b"),
    "password": ("a", "b"),
    "password_file": ("a", "b"),
    "dial_timeout": ("1s", "2ms"),
    "command_timeout": ("1s", "2ms"),
    "keepalive_time": ("11s", "12s"),
    "keepalive_timeout": ("1s", "2ms"),
    "data_dir": ("a", "b"),
    "embedded_port": ("1", "2"),
    "run_service": ("127.0.0.1:8090", "https://flyte:443"),
    "retain_terminal": ("1h", "90s"),
    "retain_runs": ("1h", "90s"),
    "retain_share": ("0.25", "0"),
    "retain_uploads": ("48h", "500h"),
    "collect_uploads": ("no", "dry-run"),
    "etcd_quota": ("1GiB", "4194304"),
    "collect_orphans": ("true", "false"),
    "shards": ("2", "16"),
    "grace": ("1s", "2"),
    "stats_interval": ("1s", "2"),
    "listen": ("127.0.0.1:1", "none"),
    "listen_cert": ("a", "b"),
    "listen_key": ("a", "b"),
    "listen_client_ca": ("a", "b"),
    "token_file": ("a", "b"),
    "oidc_issuer": ("https://a.example", "https://b.example/c"),
    "oidc_audience": ("a", "b"),
    "oidc_client_id": ("a", "b"),
    "oidc_scopes": ("a", "b,c"),
    "oidc_subject_claim": ("a", "b"),
    "oidc_projects_claim": ("a", "b"),
    "projects": ("a", "b,c-d"),
    "domains": ("a", "b,c.d"),
    "max_request_bytes": ("1024", "1MiB"),
    "max_header_bytes": ("1KiB", "2KiB"),
    "listen_users": ("any", "1000,1001"),
    "allowed_hosts": ("a.example", "b.example,::2"),
    "max_connections": ("100", "200"),
    "max_connections_per_address": ("10", "20"),
    "header_timeout": ("1s", "2ms"),
    "max_streams": ("1", "2"),
    "rate_limit": ("0", "2.5"),
    "request_timeout": ("1s", "2ms"),
    "page": ("false", "true"),
    "page_actions": ("true", "false"),
    "worker_access": ("true", "false"),
    "stream_keepalive": ("1s", "2ms"),
    "monitoring_listen": ("127.0.0.1:1", "none"),
    "ready_within": ("1s", "2ms"),
    "otlp_endpoint": ("http://a:1", "https://b:2/c"),
    "drain_delay": ("1s", "2"),
    "executor": ("local", "none"),
    "python": ("a", "b"),
    "executor_fork_server": ("true", "false"),
    "cpus": ("4", "0.5"),
    "gpus": ("0", "2"),
    "pool": ("default,big", "gpu"),
    "label": ("zone=a,disk=fast", "zone=b"),
    "executor_slots": ("1", "2"),
    "executor_memory": ("1GiB", "2GiB"),
    "executor_state_dir": ("a", "b"),
    "executor_keep": ("1h", "2m"),
    "executor_cache_keep": ("1h", "0"),
    "executor_claim_ttl": ("5", "20"),
    "images": ("ignore", "off"),
    "image_dir": ("a", "b"),
    "image_bytes": ("1GiB", "2GiB"),
    "image_keep": ("1h", "2m"),
    "image_timeout": ("1m", "30s"),
    "secret": ("a=env:A,b=file:/b", "g/c=env:C"),
    "service": ("a:1", "b:2,c:3"),
    "service_cacert": ("a", "b"),
    "service_token_file": ("a", "b"),
    "log_level": ("debug", "error"),
    "log_format": ("json", "console"),
}
SECRET = "hunter2"


def values(environ: Mapping[str, str] | None = None, /, **flags: str) -> Resolution:
    return resolve(SETTINGS, [Flags(flags), Environment(environ or {})])


def nobody(_name: str) -> str:
    raise AssertionError("nobody is to be asked")


def load(environ: Mapping[str, str] | None = None, /, **flags: str) -> Config:
    return Config(values(environ, **flags), nobody)


def connect(environ: Mapping[str, str] | None = None, /, **flags: str) -> ConnectionSettings:
    return load(environ, **flags).connection("127.0.0.1:2379")


def test_nothing_given() -> None:
    config = load()
    assert (config.endpoints, config[NAMESPACE], config[DATA_DIR], config.user) == (None,) * 4
    assert (config[PREFIX], config[CODEC], config.security) == (DEFAULT_KEY_PREFIX, "json", [])
    # The defaults in the table are those of the library.
    assert config.connection("a:1") == ConnectionSettings(endpoints=(Endpoint("a", 1),))
    assert (config[GRACE], config[STATS_INTERVAL], config[EMBEDDED_PORT]) == (10, 600, 2379)


@table("setting", SETTINGS, ids=lambda setting: setting.name)
def test_flag_before_variable_before_default(setting: Setting[object]) -> None:
    one, two = SAMPLES[setting.name]
    default = values()[setting]
    assert (default.value, default.source) == (setting.default_value, "default")
    environ = {setting.variable: one}
    from_environment = values(environ)[setting]
    assert (from_environment.value, from_environment.source) == (
        setting.kind.parse(one),
        setting.variable,
    )
    from_flag = values(environ, **{setting.name: two})[setting]
    assert (from_flag.value, from_flag.source) == (setting.kind.parse(two), setting.flag)
    assert setting.kind.parse(one) != setting.kind.parse(two)


@table("setting", SETTINGS, ids=lambda setting: setting.name)
def test_empty_variable_is_unset_and_empty_flag_an_error(setting: Setting[object]) -> None:
    assert values({setting.variable: ""})[setting].source == "default"
    with pytest.raises(ConfigError, match=f"^{setting.flag}: it is empty"):
        load(**{setting.name: ""})


def test_names_are_unique() -> None:
    for names in (
        [setting.name for setting in SETTINGS],
        [setting.variable for setting in SETTINGS],
    ):
        assert len(set(names)) == len(SETTINGS)


@pytest.mark.parametrize("given", ["/a/b", "/a/b/", "/a/b//"])
def test_prefix_ends_in_one_slash(given: str) -> None:
    assert load(prefix=given)[PREFIX] == b"/a/b/"


@table(
    ("name", "given"),
    [
        ("prefix", "/"),
        ("prefix", "//"),
        ("prefix", "/\udcff/"),
        ("namespace", "a/b"),
        ("namespace", "\udcff"),
        ("namespace_template", "flyte"),
        ("namespace_template", "{project}-{org}"),
        ("endpoints", "a:b:c"),
        ("endpoints", "a:1,ftp://b:2"),
        ("transport", "http"),
        ("codec", "yaml"),
        ("log_level", "loud"),
        ("embedded_port", "65536"),
        ("embedded_port", "-1"),
        ("embedded_port", "\N{ARABIC-INDIC DIGIT THREE}"),
        ("grace", "soon"),
        ("grace", "-1"),
        ("dial_timeout", "5"),
        ("dial_timeout", "0"),
        ("keepalive_timeout", "0s"),
        ("command_timeout", "-5s"),
        ("insecure_transport", "no"),
        ("data_dir", __file__),
    ],
)
def test_unusable_value_is_named(name: str, given: str) -> None:
    setting = next(each for each in SETTINGS if each.name == name)
    with pytest.raises(ConfigError, match=f"^{setting.flag}: "):
        load(**{name: given})
    with pytest.raises(ConfigError, match=f"^{setting.variable}: "):
        load({setting.variable: given})


def test_a_forgotten_unit_is_guessed() -> None:
    with pytest.raises(ConfigError, match=r"did you mean 5s\?"):
        load(dial_timeout="5")


@table(
    ("text", "seconds"),
    [
        ("0", 0.0),
        ("+0", 0.0),
        ("5s", 5.0),
        ("+5s", 5.0),
        ("1m30s", 90.0),
        ("500ms", 0.5),
        ("1.5h", 5400.0),
        (".5s", 0.5),
        ("1.s", 1.0),
        ("1h2m3s4ms", 3723.004),
        ("3us", 3e-6),
        ("3µs", 3e-6),
        ("3μs", 3e-6),
        ("1000000ns", 0.001),
        ("2540400h", 9145440000.0),
    ],
)
def test_durations_as_go_reads_them(text: str, seconds: float) -> None:
    assert values(keepalive_time=text)[KEEPALIVE_TIME].value == pytest.approx(seconds)


@table(
    "text",
    [
        *("5", "1.5", ".", ".s", "s", "5x", "5 s", " 5s", "5s ", "5S", "1d", "1m30", "-5s"),
        *("\N{ARABIC-INDIC DIGIT FIVE}s", "2562048h", "1e3s", "inf", f"{'9' * 400}h"),
    ],
)
def test_what_is_no_duration_for_go(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^--keepalive-time: "):
        load(keepalive_time=text)


@pytest.mark.parametrize(
    ("text", "seconds"), [("10", 10.0), ("0", 0.0), ("0.1", 0.1), ("2m", 120.0)]
)
def test_seconds_need_no_unit_in_settings_of_our_own(text: str, seconds: float) -> None:
    assert load(grace=text)[GRACE] == seconds


@pytest.mark.parametrize("text", ["1", "t", "T", "TRUE", "true", "True"])
def test_true_as_go_reads_it(text: str) -> None:
    assert connect(insecure_transport=text).tls is None


@pytest.mark.parametrize("text", first_everyday(["0", "f", "F", "FALSE", "false", "False"], 2))
def test_false_as_go_reads_it(text: str) -> None:
    assert connect(insecure_transport=text).tls == Tls()


@pytest.mark.parametrize("text", ["yes", "tRUE", "on", " true", "2"])
def test_neither_true_nor_false(text: str) -> None:
    with pytest.raises(ConfigError, match="neither true nor false"):
        load(insecure_transport=text)


def test_first_error_is_raised_and_all_are_kept() -> None:
    found = values(prefix="/", grace="soon")
    assert [str(error).partition(":")[0] for error in found.errors] == ["--prefix", "--grace"]
    assert found.get(GRACE) is None
    assert found[LOG_LEVEL].value == "info"
    with pytest.raises(ConfigError, match=r"^--prefix: "):
        Config(found, nobody)


def test_data_directory_and_endpoints_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match=r"--data-dir .* ETCDCTL_ENDPOINTS"):
        load({"ETCDCTL_ENDPOINTS": "a:1"}, data_dir="somewhere")
    with pytest.raises(ConfigError, match=r"ETCD_ACTIONS_DATA_DIR .* ETCDCTL_ENDPOINTS"):
        load({"ETCDCTL_ENDPOINTS": "a:1", "ETCD_ACTIONS_DATA_DIR": "somewhere"})
    # The variable may be there for other commands.
    assert load({"ETCD_ACTIONS_DATA_DIR": "somewhere"}, endpoints="a:1").endpoints is not None


def test_times_and_transport_reach_the_connection() -> None:
    assert connect(
        endpoints="a:1,b:2",
        transport="gateway",
        dial_timeout="1s",
        command_timeout="1m",
        keepalive_time="20s",
        keepalive_timeout="500ms",
    ) == ConnectionSettings(
        endpoints=(Endpoint("a", 1), Endpoint("b", 2)),
        transport="gateway",
        dial_timeout=1.0,
        request_timeout=60.0,
        keepalive_time=20.0,
        keepalive_timeout=0.5,
    )


def test_pings_too_frequent_for_etcd_become_rarer() -> None:
    assert connect(keepalive_time="2s").keepalive_time == 10.0


def test_secrets_are_not_shown() -> None:
    for flags in ({"user": f"a:{SECRET}"}, {"user": "a", "password": SECRET}):
        found = values(**flags)
        config = Config(found, nobody)
        things: list[object] = [
            found,
            config,
            config.user,
            config.connection("a:1"),
            Given(SECRET, "--x"),
        ]
        things += [found[setting] for setting in SETTINGS]
        assert SECRET not in f"{things} {' '.join(map(str, things))}"
        shown = [found[setting].shown for setting in SETTINGS]
        assert HIDDEN in " ".join(text for text in shown if text)
        assert SECRET not in " ".join(text for text in shown if text)


@pytest.mark.parametrize(
    "setting", [each for each in SETTINGS if each.name in ("user", "password")]
)
def test_secrets_are_in_no_error(setting: Setting[object]) -> None:
    with pytest.raises(ConfigError) as raised:
        load(**{setting.name: f"a:{SECRET}\udcff"})
    assert SECRET not in str(raised.value)
    assert raised.value.__cause__ is None


def test_unknown_variables() -> None:
    environ = dict.fromkeys(
        [
            "ETCDCTL_API",
            "ETCDCTL_ENDPOINT",
            "ETCDCTL_ENDPOINTS",
            "ETCD_ACTIONS_BOGUS",
            "ETCD_ACTIONS_PASWORD_FILE",
            "ETCD_ACTIONS_TEST_IMAGE",
            "ETCD_NAME",
            "PATH",
        ],
        SECRET,
    )
    assert list(unknown_variables(environ)) == [
        UnknownVariable("ETCDCTL_ENDPOINT", "ETCDCTL_ENDPOINTS"),
        UnknownVariable("ETCD_ACTIONS_BOGUS", None),
        UnknownVariable("ETCD_ACTIONS_PASWORD_FILE", "ETCD_ACTIONS_PASSWORD_FILE"),
    ]


def file(tmp_path: Path, text: str) -> File:
    path = tmp_path / "settings.toml"
    path.write_text(text)
    return File(path)


def test_a_file_counts_behind_flag_and_variable(tmp_path: Path) -> None:
    source = file(
        tmp_path,
        """
        endpoints = ["a:1", "b:2"]
        codec = "msgpack"
        collect_orphans = false
        max_streams = 7
        grace = 2
        """,
    )
    found = resolve(SETTINGS, [Flags({}), Environment({"ETCD_ACTIONS_CODEC": "json"}), source])
    assert not found.errors
    config = Config(found, nobody)
    assert config.endpoints == "a:1,b:2"
    assert (config[CODEC], found[CODEC].source) == ("json", "ETCD_ACTIONS_CODEC")
    assert (config[COLLECT_ORPHANS], config[MAX_STREAMS], config[GRACE]) == (False, 7, 2)
    assert found[MAX_STREAMS].source == f"{tmp_path / 'settings.toml'}: max_streams"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("endpoint = 'a:1'", "endpoint: there is no such setting: did you mean endpoints?"),
        ("max-streams = 1", "max-streams: there is no such setting: did you mean max_streams?"),
        ("nonsense = 1", "nonsense: there is no such setting"),
        ("config = 'x'", "config: there is no such setting"),
        ("password = 'x'", "password: a password does not belong here: use password_file"),
        ("user = 'a:b'", "user: a password does not belong here: use password_file"),
        ("codec = ''", "codec: it is empty"),
        ("codec = 1979-05-27", "codec: .* is neither a text"),
        ("codec = ['a', 1]", "codec: .* is neither a text"),
        ("[server]\nlisten = 'a:1'", "server: there is no such setting"),
        ("codec = ", "not valid TOML"),
    ],
)
def test_what_a_file_may_not_hold(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=f"settings.toml: {words}"):  # noqa: PT012
        found = resolve(SETTINGS, [file(tmp_path, text)])
        raise found.errors[0]


def test_a_value_that_is_none_names_the_file(tmp_path: Path) -> None:
    found = resolve(SETTINGS, [file(tmp_path, "max_streams = 0")])
    (error,) = found.errors
    assert str(error).startswith(f"{tmp_path / 'settings.toml'}: max_streams: '0' is not a number")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing: No such file"):
        File(tmp_path / "nothing")


def test_config_show_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text("max_streams = 7")
    shown = finish("config", "show", "--config", path)
    rows = {row["name"]: row for row in map(json.loads, shown.out.splitlines())}
    assert (rows["max_streams"]["value"], rows["max_streams"]["source"]) == (
        "7",
        f"{path}: max_streams",
    )
    path.write_text("max_stream = 7")
    wrong = finish("config", "show", "--config", path)
    assert wrong.code == 2
    assert "did you mean max_streams?" in wrong.complaint
