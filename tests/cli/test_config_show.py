"""``config show``, the flags as click parses them, and the table in the documentation."""

import json
import sys
from pathlib import Path
from typing import Any

import click
import pytest

from etcd_actions.cli.command_line import commands, invoke
from etcd_actions.cli.flags import SettingOption
from etcd_actions.config import COMMON, SETTINGS, Setting
from etcd_actions.config.settings import BACKEND, FILES, SECRET, SUBMIT
from tests.cli.command import ROOT, finish
from tests.cli.test_config import SAMPLES

PASSWORD = "hunter2"
DOCUMENT = ROOT / "docs" / "configuration.md"


class Shown:
    """What ``config show`` printed."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code = code
        self.out = out
        self.err = err

    @property
    def rows(self) -> dict[str, dict[str, Any]]:
        rows = [json.loads(line) for line in self.out.splitlines()]
        return {row["flag"]: row for row in rows}


@pytest.fixture(autouse=True)
def _no_settings_but_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    for setting in SETTINGS:
        monkeypatch.delenv(setting.variable, raising=False)
    monkeypatch.setattr("etcd_actions.cli.command_line.configure_logs", lambda: None)
    monkeypatch.setattr("etcd_actions.cli.options.configure_logs", lambda *_: None)


def show(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    *arguments: str,
    output: str = "jsonl",
    **environ: str,
) -> Shown:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(
        sys, "argv", ["etcd-actions", "config", "show", "--output", output, *arguments]
    )
    code = invoke()
    return Shown(code, *capfd.readouterr())


def test_each_value_and_its_source(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    shown = show(
        monkeypatch,
        capfd,
        "--prefix",
        "/a/b",
        ETCD_ACTIONS_PREFIX="/c/",
        ETCDCTL_DIAL_TIMEOUT="500ms",
    )
    assert (shown.code, shown.err) == (0, "")
    assert list(shown.rows) == [setting.flag for setting in SETTINGS]
    assert shown.rows["--prefix"] == {
        "name": "prefix",
        "value": "/a/b/",
        "source": "--prefix",
        "flag": "--prefix",
        "variable": "ETCD_ACTIONS_PREFIX",
        "note": "",
    }
    dial = shown.rows["--dial-timeout"]
    assert (dial["value"], dial["source"]) == ("500ms", "ETCDCTL_DIAL_TIMEOUT")
    level = shown.rows["--log-level"]
    assert (level["value"], level["source"]) == ("info", "default")
    assert shown.rows["--namespace"]["value"] is None


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_flag_and_variable_of_each_setting(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], setting: Setting[object]
) -> None:
    one, two = SAMPLES[setting.name]
    # Alone some are unusable, which is told, and shown all the same.
    by_variable = show(monkeypatch, capfd, **{setting.variable: one}).rows[setting.flag]
    assert (by_variable["value"], by_variable["source"]) == (
        setting.kind.show(one),
        setting.variable,
    )
    monkeypatch.setenv(setting.variable, one)
    by_flag = show(monkeypatch, capfd, f"{setting.flag}={two}").rows[setting.flag]
    assert (by_flag["value"], by_flag["source"]) == (setting.kind.show(two), setting.flag)


def test_flags_and_variables_of_all_settings_together(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """What does not fit together is told, and shown all the same."""
    variables = {setting.variable: SAMPLES[setting.name][0] for setting in SETTINGS}
    flags = [f"{setting.flag}={SAMPLES[setting.name][1]}" for setting in SETTINGS]
    by_variable = show(monkeypatch, capfd, **variables).rows
    by_flag = show(monkeypatch, capfd, *flags, **variables).rows
    for setting in SETTINGS:
        one, two = map(setting.kind.show, SAMPLES[setting.name])
        row = by_variable[setting.flag]
        assert (row["value"], row["source"]) == (one, setting.variable)
        row = by_flag[setting.flag]
        assert (row["value"], row["source"]) == (two, setting.flag)


def test_table(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    shown = show(monkeypatch, capfd, "--codec", "msgpack", output="table")
    header, *lines = shown.out.splitlines()
    assert header.split() == ["FLAG", "VALUE", "FROM", "VARIABLE", "NOTE"]
    assert len(lines) == len(SETTINGS)
    codec = next(line for line in lines if line.startswith("--codec "))
    assert codec.split() == ["--codec", "msgpack", "--codec", "ETCD_ACTIONS_CODEC"]
    assert codec.index("msgpack") == header.index("VALUE")


def test_json(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    shown = show(monkeypatch, capfd, output="json")
    assert [row["name"] for row in json.loads(shown.out)] == [each.name for each in SETTINGS]


@pytest.mark.parametrize("output", ["table", "json", "jsonl"])
def test_passwords_are_hidden(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], output: str
) -> None:
    arguments = ["--log-level", "debug"]
    for user, password in ((f"a:{PASSWORD}", ""), (f"a:{PASSWORD}", PASSWORD), ("a", PASSWORD)):
        for environ, flags in (
            ({"ETCDCTL_USER": user, "ETCDCTL_PASSWORD": password}, []),
            ({}, [f"--user={user}", *([f"--password={password}"] if password else [])]),
        ):
            shown = show(monkeypatch, capfd, *arguments, *flags, output=output, **environ)
            assert shown.code == 0
            assert PASSWORD not in shown.out + shown.err
            assert "(hidden)" in shown.out


def test_unusable_values_are_told_and_the_others_shown(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    shown = show(
        monkeypatch, capfd, "--grace", "soon", "--namespace", "a", ETCDCTL_KEEPALIVE_TIME="5"
    )
    assert shown.code == 2
    first, second = shown.err.splitlines()
    assert first.startswith("etcd-actions: ETCDCTL_KEEPALIVE_TIME: ")
    assert second.startswith("etcd-actions: --grace: ")
    assert shown.rows["--grace"]["source"] == "unusable"
    assert shown.rows["--grace"]["value"] is None
    assert shown.rows["--namespace"]["value"] == "a"


def test_what_does_not_fit_together_is_told(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    shown = show(monkeypatch, capfd, "--cert", "c.pem")
    assert shown.code == 2
    assert shown.err.startswith("etcd-actions: --cert is given without --key")
    assert shown.rows["--cert"]["value"] == "c.pem"


def test_notes(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "password"
    file.write_text(PASSWORD)
    file.chmod(0o600)
    shown = show(monkeypatch, capfd, "--keepalive-time", "2s", "--user", "a")
    keepalive = shown.rows["--keepalive-time"]
    assert keepalive["value"] == "10s"
    assert "raised from 2s" in keepalive["note"]
    # Nobody is asked, and it is no error.
    assert "prompts for" in shown.rows["--user"]["note"]
    assert shown.code == 0
    arguments = ["--user", "a", "--password-file", str(file)]
    rows = show(monkeypatch, capfd, *arguments, ETCDCTL_PASSWORD=PASSWORD).rows
    assert "not used" in rows["--password"]["note"]
    assert rows["--password-file"]["note"] == ""


def test_endpoints_come_once_or_several_times(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    shown = show(monkeypatch, capfd, "--endpoints", "a:1,b:2", "--endpoints", "c:3")
    assert shown.rows["--endpoints"]["value"] == "a:1,b:2,c:3"


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        ([], "false"),
        (["--insecure-skip-tls-verify"], "true"),
        (["--insecure-skip-tls-verify=false"], "false"),
        (["--insecure-skip-tls-verify=1"], "1"),
        (["--insecure-skip-tls-verify", "--insecure-skip-tls-verify=F"], "F"),
        # Another flag's value is left alone.
        (["--namespace", "--insecure-skip-tls-verify"], "false"),
    ],
)
def test_truth_values(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    arguments: list[str],
    value: str,
) -> None:
    shown = show(monkeypatch, capfd, *arguments)
    assert shown.rows["--insecure-skip-tls-verify"]["value"] == value
    assert shown.code == 0


def test_truth_value_takes_no_next_argument(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    shown = show(monkeypatch, capfd, "--insecure-transport", "false")
    assert shown.code == 2
    assert "unexpected extra argument (false)" in shown.err
    # After -- nothing is a flag.
    shown = show(monkeypatch, capfd, "--", "--insecure-transport")
    assert "unexpected extra argument (--insecure-transport)" in shown.err


def test_unknown_variable_is_warned_of() -> None:
    done = finish("config", "show", ETCD_ACTIONS_NAMSPACE="a")
    (line,) = done.err.splitlines()
    warning = json.loads(line)
    assert (warning["event"], warning["level"]) == ("unknown_variable", "warning")
    assert warning["name"] == "ETCD_ACTIONS_NAMSPACE"
    assert warning["did_you_mean"] == "ETCD_ACTIONS_NAMESPACE"
    assert (done.code, len(done.out.splitlines())) == (0, len(SETTINGS))


@pytest.mark.parametrize("variable", ["ETCD_ACTIONS_LOG_LEVEL", "ETCD_ACTIONS_LOG_FORMAT"])
def test_logs_follow_their_variables(variable: str) -> None:
    value = {"ETCD_ACTIONS_LOG_LEVEL": "error", "ETCD_ACTIONS_LOG_FORMAT": "console"}[variable]
    err = finish("config", "show", ETCD_ACTIONS_NAMSPACE="a", **{variable: value}).err
    assert ("unknown_variable" in err, err.startswith("{")) == (value == "console", False)


def test_embedded_etcd_knows_neither_tls_nor_users(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ETCDCTL_USER", f"a:{PASSWORD}")
    monkeypatch.setattr(sys, "argv", ["etcd-actions", "run", "--insecure-transport=false"])
    code = invoke()
    out, err = capfd.readouterr()
    assert (code, out) == (2, "")
    assert err.startswith("etcd-actions: --insecure-transport, ETCDCTL_USER: the embedded etcd ")
    assert "--endpoints or ETCDCTL_ENDPOINTS" in err
    assert PASSWORD not in err


def settings_of(name: str) -> list[str]:
    command = commands.load(name)
    return [each.opts[0] for each in command.params if isinstance(each, SettingOption)]


def test_run_has_its_settings_and_the_other_commands_the_common_ones() -> None:
    of_run = [setting.flag for setting in SETTINGS if setting.scope in ("all", "run")]
    assert settings_of("run") == of_run
    assert set(settings_of("submit")) == {setting.flag for setting in SUBMIT}
    assert settings_of("replay") == [setting.flag for setting in COMMON]
    for name in ("enqueue", "abort", "signal", "status", "watch", "runs", "version"):
        assert settings_of(name) == [setting.flag for setting in BACKEND]
    for name in ("delete", "gc", "logs", "io"):
        assert settings_of(name) == [setting.flag for setting in FILES]


def test_help_tells_every_setting_and_no_value(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for setting in SECRET:
        monkeypatch.setenv(setting.variable, PASSWORD)
    told = ""
    for command in ("run", "worker", "submit"):
        monkeypatch.setattr(sys, "argv", ["etcd-actions", command, "--help"])
        assert invoke() == 0
        told += " ".join(capfd.readouterr().out.split())
    for setting in SETTINGS:
        assert f"{setting.flag} " in told
        assert f"{setting.help}. [env: {setting.variable}; default: " in told
    assert PASSWORD not in told


def test_shells_complete_the_values() -> None:
    options = {
        each.opts[0]: each
        for each in commands.load("watch").params
        if isinstance(each, SettingOption)
    }
    context = click.Context(commands)
    complete = options["--codec"].shell_complete(context, "m")
    assert [item.value for item in complete] == ["msgpack"]
    assert [item.type for item in options["--cacert"].shell_complete(context, "")] == ["file"]


def test_documentation_has_every_setting() -> None:
    expected = []
    for setting in SETTINGS:
        default = setting.otherwise if setting.default is None else f"`{setting.default}`"
        expected.append(f"| `{setting.flag}` | `{setting.variable}` | {default} | {setting.help} |")
    lines = DOCUMENT.read_text().splitlines()
    assert [line for line in lines if line.startswith("| `--") and "` | `E" in line] == expected


def test_documented_commands_are_understood(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from tests.support.cluster import Certificates  # noqa: PLC0415 (trustme is slow to import)

    certificates = Certificates(tmp_path)
    certificates.issue("client", "client.test")
    (tmp_path / "worker.password").write_text(PASSWORD)
    (tmp_path / "worker.password").chmod(0o600)
    monkeypatch.chdir(tmp_path)
    table = DOCUMENT.read_text().partition("## How to connect")[2].partition("\n##")[0]
    rows = [
        line.split("`")[1] for line in table.splitlines() if line.startswith("| ") and "`" in line
    ]
    assert len(rows) == 12
    for row in rows:
        before, _, after = row.partition("etcd-actions ")
        _command, *arguments = after.split()
        environ = dict(word.split("=") for word in before.split())
        with monkeypatch.context() as patch:
            shown = show(patch, capfd, *arguments, **environ)
        assert (shown.code, shown.err) == (0, ""), row
