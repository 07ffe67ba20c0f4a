"""Measures each row of docs/performance.md and prints the table. See README.md."""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

from scripts.bench import go_reader, machine
from scripts.bench.page import page, summary, table
from scripts.bench.processes import ROOT, ChildFailed, etcd_binary, etcd_version
from scripts.bench.results import FLOOR, GO, OURS, Result
from scripts.bench.rows import ROWS, SCENARIOS
from scripts.bench.setting import Setting, Skipped

PAGE = ROOT / "docs/performance.md"
KEPT = ROOT / "docs/performance.json"
SIZES = (1_000, 10_000, 100_000)
LARGE = 1_000_000
OTHERS = ("aetcd", "etcd3-py")


class Run:
    """One run of the bench."""

    def __init__(self, setting: Setting, others: tuple[str, ...]) -> None:
        self._setting = setting
        self._others = others
        self._conditions = _conditions(setting)
        self._looks: dict[str, list[machine.Look]] = {}
        self.results: dict[str, Result] = {}

    def measure(self, name: str) -> Result:
        """Measure a row; errors are noted in its result."""
        result = self.results[name] = Result(
            row=name, conditions=self._conditions, short=self._setting.quick
        )
        self._looks[name] = [machine.look()]
        began = time.monotonic()
        sides = [FLOOR, OURS]
        if go_reader.available() and any(goal.against == GO for goal in ROWS[name].goals):
            sides.append(GO)
        if name.startswith(("watch", "batched")):
            sides += self._others
        try:
            with SCENARIOS[name](self._setting) as take:
                for number in range(self._setting.rounds):
                    figures: dict[str, dict[str, float]] = {}
                    for turn in range(len(sides)):
                        side = sides[(number + turn) % len(sides)]
                        try:
                            figures[side] = take(side)
                        except Exception as error:
                            _note(result, f"round {number + 1}, {side}", error)
                    result.rounds.append(figures)
                    self._looks[name].append(machine.look())
        except Skipped as reason:
            result.skipped = str(reason)
        except Exception as error:
            _note(result, "before the first round", error)
        result.seconds = time.monotonic() - began
        return result

    def judge_machine(self) -> None:
        """Note in each result whether the machine was quiet, now that its best is known."""
        looks = [one for found in self._looks.values() for one in found]
        best = min(one.speed_ms for one in looks)
        for name, found in self._looks.items():
            self.results[name].doubts += machine.doubts(found, best)


def _note(result: Result, where: str, error: Exception) -> None:
    result.failures.append(f"{where}: {type(error).__name__}: {error}")
    print(f"{result.row}, {where}: {type(error).__name__}: {error}", file=sys.stderr)
    if isinstance(error, ChildFailed) and error.output:
        print("  " + error.output.replace("\n", "\n  "), file=sys.stderr)


def _conditions(setting: Setting) -> str:
    what = "a short pass with smaller stores" if setting.quick else "in full"
    return (
        f"{what}: rounds {setting.rounds}, loads of {setting.seconds:g} s,"
        f" stores of up to {setting.sizes[-1]:,} keys;"
        f" etcd {etcd_version(setting.etcd)}, Python {platform.python_version()},"
        f" grpcio {version('grpcio')}; {machine.description()},"
        f" load average {os.getloadavg()[0]:.2f} before."
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench/run", description=__doc__)
    add = parser.add_argument
    add("rows", nargs="*", metavar="ROW", help="rows to measure, such as watch-1000 (all)")
    add("--list", action="store_true", help="print the names of the rows, and end")
    add("--quick", action="store_true", help="one round, short loads, smaller stores")
    add("--large", action="store_true", help="a store of 1,000,000 keys, too")
    add("--rounds", type=int, help="times that each side of a row is measured (3; quick 1)")
    add("--seconds", type=float, help="length of a load (6; quick 2)")
    add("--others", action="store_true", help="other clients' readers, too: aetcd, etcd3-py")
    add("--etcd", metavar="PATH", help="the etcd to run (of PATH, else the wheel's)")
    add("--directory", type=Path, help="where etcd's data goes (the system's place)")
    add("--json", type=Path, metavar="FILE", help="write the results there")
    add("--write", action="store_true", help=f"write {PAGE.name} and {KEPT.name} in docs/")
    add("--render", action="store_true", help=f"measure nothing; write {PAGE.name} again")
    options = parser.parse_args()
    for name in options.rows:
        if name not in ROWS:
            parser.error(f"no row {name!r}; there are {', '.join(ROWS)}")
    if options.rounds is not None and options.rounds < 1:
        parser.error("--rounds: below 1")
    if options.seconds is not None and options.seconds <= 0:
        parser.error("--seconds: not above 0")
    return options


def _kept() -> dict[str, Result]:
    """The results of earlier runs, of rows that there still are."""
    if not KEPT.exists():
        return {}
    found = [Result(**one) for one in json.loads(KEPT.read_text(encoding="utf-8"))]
    return {one.row: one for one in found if one.row in ROWS}


def _in_json(results: dict[str, Result]) -> str:
    ordered = [results[name].to_dict() for name in ROWS if name in results]
    return json.dumps(ordered, indent=1, ensure_ascii=False) + "\n"


def _stop(_signal: int, _frame: object) -> NoReturn:
    raise SystemExit(143)


def main() -> None:
    """Measure, and print Markdown."""
    options = _options()
    if options.list:
        for row in ROWS.values():
            print(f"{row.name:16} {row.title}")
        return
    if options.render:
        PAGE.write_text(page(_kept()), encoding="utf-8")
        return
    signal.signal(signal.SIGTERM, _stop)
    sizes = SIZES[:2] if options.quick else SIZES
    setting = Setting(
        etcd=etcd_binary(options.etcd),
        directory=options.directory,
        rounds=options.rounds or (1 if options.quick else 3),
        seconds=options.seconds or (2 if options.quick else 6),
        quick=options.quick,
        sizes=(*sizes, LARGE) if options.large else sizes,
    )
    began = time.monotonic()
    run = Run(setting, OTHERS if options.others else ())
    for name in options.rows or ROWS:
        print(summary(run.measure(name)), file=sys.stderr, flush=True)
    run.judge_machine()
    print(table(run.results, run.results))
    noisy = [name for name, one in run.results.items() if one.doubts]
    if noisy:
        print(f"The machine was not quiet in {len(noisy)} of {len(run.results)} rows:")
        for name in noisy:
            print(f"- {name}: {'; '.join(run.results[name].doubts)}")
    if options.json:
        options.json.write_text(_in_json(run.results), encoding="utf-8")
    if options.write:
        together = _kept() | run.results
        KEPT.write_text(_in_json(together), encoding="utf-8")
        PAGE.write_text(page(together), encoding="utf-8")
    print(f"{time.monotonic() - began:.0f} s in all", file=sys.stderr)
    if any(one.failures for one in run.results.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
