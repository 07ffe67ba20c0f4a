"""The runs that tests of the page, its screenshots and its measurements have."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Final

from etcd_actions import Phase
from etcd_actions.model import ErrorState
from tests.support.page_data import Phases, Run, Step

QUEUED, WAITING = Phase.QUEUED, Phase.WAITING_FOR_RESOURCES
INITIALIZING, RUNNING, PAUSED = Phase.INITIALIZING, Phase.RUNNING, Phase.PAUSED
SUCCEEDED, FAILED, ABORTED = Phase.SUCCEEDED, Phase.FAILED, Phase.ABORTED

TRACEBACK: Final = """\
Traceback (most recent call last):
  File "/srv/forecast/flows/evaluate.py", line 88, in evaluate
    report = compare(model, holdout, metrics=("mape", "rmse"))
  File "/srv/forecast/flows/evaluate.py", line 41, in compare
    truth = holdout.loc[model.horizon]
            ~~~~~~~~~~~^^^^^^^^^^^^^^^
  File "/opt/venv/lib/python3.12/site-packages/pandas/core/indexing.py", line 1191, in __getitem__
    return self._getitem_axis(maybe_callable, axis=axis)
KeyError: "[Timestamp('2026-11-29 00:00:00')] not in index"
"""
MISSING: Final = ErrorState(code="KeyError", kind="USER", message=TRACEBACK)
EVICTED: Final = ErrorState(
    code="WorkerLost", kind="SYSTEM", message="the attempt's process was killed by signal 9"
)

HOSTILE: Final = (
    "<script>window.__ran = 'script'</script>",
    '"><img src=x onerror="window.__ran = \'img\'">',
    "'-alert(1)-'",
    "javascript:window.__ran='url'",
    "</script><svg onload=window.__ran='svg'>",
    "${window.__ran='template'}{{7*7}}",
    "\u202egnp.exe\u202c \u2066turned\u2069",
    "zero\u200bwidth\u200dand\u0000nul\x1b[31m",
    "x" * 300,
    "👩\u200d🚀🏴\u200d☠️ émoji ﷽ 漢字",
    "<!--<script>",
    "]]>",
    "\\u003cb\\u003e",
    "__proto__",
    "constructor",
)
"""Texts that a page must show as they are."""


def small_run(started: datetime, name: str = "r1") -> Run:
    """A run in progress of six actions: what most tests look at."""
    return Run(
        name=name,
        started=started,
        steps=[
            Step(name="a0", parent="", task="main", phases=went(0, 1, 2)),
            Step(name="extract", phases=went(2, 3, 4, end=20)),
            Step(name="train", phases=went(20, 21, 22)),
            Step(name="fold-1", parent="train", task="fit", phases=went(22, 23, 24, end=40)),
            Step(name="fold-2", parent="train", task="fit", phases=went(22, 23, 24)),
            Step(name="check", phases=went(20, 22, 23, end=33, how=FAILED), error=MISSING),
        ],
    )


def went(*times: float, end: float | None = None, how: Phase = SUCCEEDED) -> Phases:
    """Queued, initializing and running at these times, and how it ended."""
    phases = list(zip((QUEUED, INITIALIZING, RUNNING), times, strict=False))
    return phases if end is None else [*phases, (how, end)]


def hostile_run(started: datetime, name: str = "hostile") -> Run:
    """A run whose texts are all :data:`HOSTILE`."""
    root = Step(name="a0", parent="", task=HOSTILE[0], phases=went(0, 1, 2))
    steps = [root]
    for number, text in enumerate(HOSTILE):
        error = ErrorState(code=text[:60], kind="USER", message=f"{text}\n{text}")
        steps.append(
            Step(
                name=f"h{number}",
                task=text,
                group=text[:80],
                phases=went(2, 3, 4, end=10 + number, how=FAILED),
                error=error,
            )
        )
    return Run(
        name=name,
        started=started,
        steps=steps,
        task=f"{HOSTILE[1]}.main",
        creator=HOSTILE[0],
        labels={"a": HOSTILE[1][:60]},
    )


def large_run(started: datetime, count: int = 10_000, name: str = "large") -> Run:
    """A run of many actions, three levels deep: of each hundred the first has the others below."""
    steps = [Step(name="a0", parent="", task="main", phases=went(0, 1, 2))]
    parent = ""
    for number in range(count - 1):
        begins = 2 + number // 20
        ended = begins + 5 + number % 37
        if number % 100 == 0:
            parent = f"part-{number // 100:03}"
            steps.append(Step(name=parent, task="partition", phases=went(begins, begins, begins)))
            continue
        how = FAILED if number % 997 == 0 else SUCCEEDED
        done = None if number > count * 9 // 10 else ended
        steps.append(
            Step(
                name=f"row-{number:05}",
                parent=parent,
                task="load_row",
                phases=went(begins, begins + 1, begins + 2, end=done, how=how),
                error=MISSING if how is FAILED and done else None,
            )
        )
    return Run(name=name, started=started, steps=steps)


def demonstration(now: datetime) -> Iterator[Run]:
    """Two days of a team's runs; the first one is in progress."""
    yield forecast(now - timedelta(minutes=7, seconds=40))
    yield Run(
        name="reindex-catalogue",
        started=now - timedelta(seconds=25),
        task="search.reindex",
        creator="mira",
        steps=[Step(name="a0", parent="", task="reindex", phases=[(QUEUED, 0), (WAITING, 1)])],
    )
    ends = (SUCCEEDED, SUCCEEDED, FAILED, SUCCEEDED, SUCCEEDED, ABORTED, SUCCEEDED, SUCCEEDED)
    people = ("mira", "jonas", "ci", "ci", "amara")
    tasks = ("forecast.nightly", "search.reindex", "reports.weekly", "forecast.backfill")
    for number in range(24):
        how = ends[number % len(ends)]
        took = 40 + (number * 137) % 900
        task = tasks[number % len(tasks)]
        short = task.rpartition(".")[2]
        yield Run(
            name=f"{short}-{_tag(number)}",
            started=now - timedelta(minutes=31 + 97 * number),
            task=task,
            domain="production" if number % 3 == 0 else "development",
            creator=people[number % len(people)],
            labels={"team": "forecast"} if task.startswith("forecast") else {},
            steps=[
                Step(
                    name="a0",
                    parent="",
                    task=short,
                    phases=went(0, 2, 3, end=took, how=how),
                    error=MISSING if how is FAILED else None,
                    aborted=("jonas", "the source is being migrated") if how is ABORTED else None,
                ),
                Step(name="load", phases=went(4, 5, 6, end=took / 2)),
                Step(
                    name="work",
                    phases=went(took / 2, took / 2 + 1, took / 2 + 2, end=took - 1, how=how),
                    error=MISSING if how is FAILED else None,
                ),
            ],
        )


def forecast(started: datetime) -> Run:
    """A pipeline as people have it: fan-out, retry, a failure, a trace, an approval."""
    regions = ("emea", "apac", "latam", "north-america", "dach", "nordics", "iberia", "anz")
    steps = [
        Step(name="a0", parent="", task="nightly_forecast", phases=went(0, 3, 5)),
        Step(name="extract", task="extract_sales", phases=went(6, 8, 9, end=64)),
        Step(name="calendar", task="load_holidays", kind="trace", phases=went(6, end=9)),
        Step(name="features", task="build_features", phases=went(65, 67, 68, end=151)),
        Step(name="train", task="train_all_regions", phases=went(152, 154, 155)),
    ]
    for number, region in enumerate(regions):
        begins = 156 + 9 * number
        took = 96 + (number * 53) % 90
        running = number >= 6
        steps.append(
            Step(
                name=f"train-{region}",
                parent="train",
                group="regions",
                task="train_region",
                phases=went(begins, begins + 3, begins + 5, end=None if running else begins + took),
            )
        )
    steps += [
        Step(
            name="weather",
            task="fetch_weather",
            phases=went(121, 122, 123, end=171),
            earlier=[
                (went(65, 66, 67, end=91, how=FAILED), EVICTED),
                (went(92, 93, 94, end=120, how=FAILED), EVICTED),
            ],
        ),
        Step(
            name="evaluate",
            task="evaluate_holdout",
            phases=went(310, 312, 313, end=352, how=FAILED),
            error=MISSING,
        ),
        Step(
            name="approve",
            task="publish to the planning board?",
            kind="condition",
            phases=[(QUEUED, 353), (PAUSED, 354)],
        ),
        Step(name="publish", task="publish_forecast", phases=[(QUEUED, 355), (WAITING, 356)]),
    ]
    return Run(
        name="nightly-forecast-x7f3k",
        started=started,
        task="forecast.nightly_forecast",
        domain="production",
        creator="mira",
        labels={"team": "forecast", "schedule": "nightly"},
        steps=steps,
    )


def forecast_log() -> str:
    """What a task of :func:`forecast` has printed so far."""
    lines = ["09:37:45 INFO  reading 412,883 rows of s3://sales/2026-11-28/iberia"]
    for fold in range(1, 4):
        lines.append(f"09:38:{fold * 11:02} INFO  fold {fold} of 5: 96 features, horizon 14 days")
        for epoch in range(1, 9):
            loss = 0.412 / (epoch + fold) ** 0.7
            second = fold * 11 + epoch
            lines.append(f"09:38:{second:02} DEBUG epoch {epoch}: loss {loss:.4f}")
        lines.append(f"09:38:{fold * 11 + 9:02} INFO  fold {fold}: mape {0.081 - fold / 250:.3f}")
    lines.insert(14, "09:38:23 WARN  7 rows of 2026-02-29 were dropped: there is no such day")
    return "\n".join(lines) + "\n"


def _tag(number: int) -> str:
    digits = "0123456789abcdefghjkmnpqrstvwxyz"
    value = (number + 11) * 2_654_435_761 % 32**5
    return "".join(digits[value // 32**place % 32] for place in range(5))
