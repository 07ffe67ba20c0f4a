"""Our finalizer is taken away by an API server, which ``kubectl`` asks; here a stand-in for it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import Finished, finish
from tests.support.everyday import first_everyday

OURS = "etcd-actions.io/record"

# Answers `get` from a file of objects and applies the patches to it, as an API server does.
KUBECTL = """#!{python}
import fcntl, json, os, sys
from pathlib import Path
here = Path({here!r})
with open(here / "lock", "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    arguments = sys.argv[1:]
    with open(here / "calls", "a") as calls:
        calls.write(json.dumps(arguments) + "\\n")
    flags = dict(each.split("=", 1) for each in arguments if "=" in each)
    words = [each for each in arguments if not each.startswith("--")]
    state = json.loads((here / "state").read_text())
    if "refuse" in state and words[0] in state["refuse"]:
        # Its log comes first: five times a line of 200 characters, where nothing answers.
        line = "E1128 10:32:28.464015 15550 memcache.go:265] " + 150 * "x" + "\\n"
        print(5 * line, file=sys.stderr)
        sys.exit("Error from server (Forbidden): you may not \\x1b[31m" + words[0])
    if words[0] == "get":
        for name, finalizers in state["objects"].items():
            namespace, _, name = name.partition("/")
            if flags.get("--namespace", namespace) == namespace:
                for at, finalizer in enumerate(finalizers):
                    if finalizer == "{ours}":
                        print(namespace, name, at)
    else:
        key = flags["--namespace"] + "/" + words[2]
        if key in state.pop("vanishing", []):
            sys.exit('Error from server (NotFound): taskactions.flyte.org "x" not found')
        if added := state.get("added", {{}}).pop(key, None):
            state["objects"][key].insert(0, added)
        finalizers = state["objects"][key]
        test, remove = json.loads(flags["--patch"])
        assert (test["op"], remove["op"], test["path"]) == ("test", "remove", remove["path"])
        at = int(test["path"].removeprefix("/metadata/finalizers/"))
        done = at < len(finalizers) and finalizers[at] == test["value"]
        if done:
            del finalizers[at]
        (here / "state").write_text(json.dumps(state))
        if not done:
            sys.exit("The request is invalid: the test failed")
"""


class Kubectl:
    """The stand-in, in a directory of its own."""

    def __init__(self, here: Path) -> None:
        self.here = here
        self.bin = here / "bin"
        self.bin.mkdir()
        script = self.bin / "kubectl"
        script.write_text(KUBECTL.format(python=sys.executable, here=str(here), ours=OURS))
        script.chmod(0o755)

    def has(self, objects: dict[str, list[str]], **more: Any) -> None:
        (self.here / "state").write_text(json.dumps({"objects": objects, **more}))

    @property
    def objects(self) -> dict[str, list[str]]:
        objects: dict[str, list[str]] = json.loads((self.here / "state").read_text())["objects"]
        return objects

    @property
    def calls(self) -> list[list[str]]:
        return [json.loads(line) for line in (self.here / "calls").read_text().splitlines()]

    def release(self, *arguments: str) -> Finished:
        path = f"{self.bin}{os.pathsep}{os.environ['PATH']}"
        return finish("release-finalizers", *arguments, PATH=path)


@pytest.fixture
def kubectl(tmp_path: Path) -> Kubectl:
    return Kubectl(tmp_path)


def test_our_finalizer_is_taken_away_and_no_other(kubectl: Kubectl) -> None:
    """Each patch tests first that it takes away what it means to."""
    kubectl.has({"flyte/r-a0": ["x/y", OURS], "flyte/r-c1": [OURS], "other/r-a0": ["x/y"]})
    done = kubectl.release()
    assert (done.code, done.out) == (0, "")
    assert done.complaint == (f"etcd-actions: removed {OURS} from 2 actions; no other has it")
    assert kubectl.objects == {"flyte/r-a0": ["x/y"], "flyte/r-c1": [], "other/r-a0": ["x/y"]}
    listed = kubectl.calls[0]
    assert listed[:3] == ["get", "taskactions.flyte.org", "--all-namespaces"]
    assert f'{{{{if eq $f "{OURS}"}}}}' in listed[3]
    assert {tuple(call[:4]) for call in kubectl.calls if call[0] == "patch"} == {
        ("patch", "taskactions.flyte.org", "r-a0", "--namespace=flyte"),
        ("patch", "taskactions.flyte.org", "r-c1", "--namespace=flyte"),
    }


@pytest.mark.slow
def test_what_changed_since_the_list_is_listed_again(kubectl: Kubectl) -> None:
    kubectl.has(
        {"flyte/r-a0": [OURS], "flyte/r-c1": [OURS], "flyte/r-c2": [OURS]},
        added={"flyte/r-a0": "x/y"},
        vanishing=["flyte/r-c2"],
    )
    done = kubectl.release()
    assert done.code == 0
    assert kubectl.objects == {"flyte/r-a0": ["x/y"], "flyte/r-c1": [], "flyte/r-c2": []}


def test_only_a_namespace_in_a_context(kubectl: Kubectl) -> None:
    kubectl.has({"flyte/r-a0": [OURS], "other/r-a0": [OURS]})
    done = kubectl.release("--namespace", "other", "--context", "there")
    assert done.code == 0
    assert kubectl.objects == {"flyte/r-a0": [OURS], "other/r-a0": []}
    assert {call[0] for call in kubectl.calls} == {"--context=there"}


def test_a_dry_run_changes_nothing(kubectl: Kubectl) -> None:
    kubectl.has({"flyte/r-a0": [OURS], "flyte/r-c1": []})
    done = kubectl.release("--dry-run")
    assert (done.code, done.out) == (0, "flyte/r-a0\n")
    assert [call[0] for call in kubectl.calls] == ["get"]


@pytest.mark.parametrize("refused", first_everyday(["patch", "get"]))
def test_what_the_api_server_refuses_is_told(kubectl: Kubectl, refused: str) -> None:
    kubectl.has({"flyte/r-a0": [OURS]}, refuse=[refused])
    done = kubectl.release()
    assert done.code == 4
    assert f"Error from server (Forbidden): you may not \\x1b[31m{refused}" in done.complaint
    assert "memcache.go" not in done.complaint
    assert kubectl.objects == {"flyte/r-a0": [OURS]}


def test_a_name_that_is_none_is_never_an_argument(kubectl: Kubectl) -> None:
    kubectl.has({"flyte/--all": [OURS]})
    done = kubectl.release()
    assert done.code == 4
    assert "printed no name: 'flyte --all 0'" in done.complaint
    assert [call[0] for call in kubectl.calls] == ["get"]


def test_without_kubectl_it_says_so(tmp_path: Path) -> None:
    done = finish("release-finalizers", PATH=str(tmp_path))
    assert done.code == 2
    assert "there is no kubectl on PATH" in done.complaint
