"""How long things may take: validated, bounded, and counted on a clock that nobody sets."""

from __future__ import annotations

import math

import pytest
from flyteidl2.core.tasks_pb2 import TaskTemplate
from google.protobuf.duration_pb2 import Duration
from hypothesis import given
from hypothesis import strategies as st

from etcd_actions import ActionId, ActionUpdate, Phase
from etcd_actions._internal.clock import Clock
from etcd_actions.errors import InvalidArgument
from etcd_actions.executor.attempts.attempt_limits import MOST_ATTEMPTS, Limits, retry_delay
from etcd_actions.executor.scheduling.ages import Ages
from etcd_actions.model import ActionObject, ObjectMeta, PhaseTransition, TaskActionSpec
from etcd_actions.model.durations import LONGEST, age_of, limit_of, seconds_of
from etcd_actions.model.taskaction import TaskActionStatus
from tests.support.table import table

INT64 = st.integers(-(2**63), 2**63 - 1)
INT32 = st.integers(-(2**31), 2**31 - 1)


def limits_of(template: TaskTemplate, attempt: int = 1) -> Limits:
    return Limits.of(template, attempt, created=1000.0, queued=2000.0)


@given(INT64, INT32)
def test_any_duration_is_a_limit_or_none_or_named(seconds: int, nanos: int) -> None:
    duration = Duration(seconds=seconds, nanos=nanos)
    if seconds < 0 or not 0 <= nanos < 10**9:
        with pytest.raises(InvalidArgument) as raised:
            limit_of(duration, "spec.x")
        assert raised.value.field == "spec.x"
        return
    limit = limit_of(duration, "spec.x")
    assert limit is None or 0 < limit < LONGEST
    assert 0 <= seconds_of(duration, "spec.x") <= LONGEST


@pytest.mark.parametrize("seconds", [315_576_000_000, 2**63 - 1, int(LONGEST)])
def test_an_over_large_time_is_no_limit(seconds: int) -> None:
    template = TaskTemplate()
    metadata = template.metadata
    for duration in (
        metadata.timeout,
        metadata.timeouts.deadline,
        metadata.timeouts.queued_timeout,
    ):
        duration.seconds = seconds
    limits = limits_of(template)
    assert (limits.run, limits.deadline, limits.queued) == (None, None, None)
    assert limits.late(1e12) is None
    assert limits.running_ends(0)[0] == math.inf


@pytest.mark.parametrize(
    "field", ["timeout", "timeouts.deadline", "timeouts.queuedTimeout", "retries.backoff.base"]
)
def test_a_negative_time_is_named(field: str) -> None:
    template = TaskTemplate()
    target = template.metadata
    *path, last = field.replace("queuedTimeout", "queued_timeout").split(".")
    for name in path:
        target = getattr(target, name)
    getattr(target, last).nanos = -1
    with pytest.raises(InvalidArgument) as raised:
        limits_of(template)
    assert raised.value.field == f"spec.taskTemplate.metadata.{field}"


def with_backoff(base: float, factor: float, cap: float | None, retries: int = 9) -> TaskTemplate:
    template = TaskTemplate()
    strategy = template.metadata.retries
    strategy.retries = retries
    strategy.backoff.base.FromNanoseconds(int(base * 1e9))
    strategy.backoff.factor = factor
    if cap is not None:
        strategy.backoff.cap.FromNanoseconds(int(cap * 1e9))
    return template


def test_the_back_off_grows_from_its_base_to_its_cap() -> None:
    """As the SDK computes it: the second attempt waits for the base."""
    template = with_backoff(10, 2, 60)
    assert [retry_delay(template, attempt) for attempt in range(1, 7)] == [0, 10, 20, 40, 60, 60]
    assert retry_delay(with_backoff(10, 1, None), 9) == 10
    assert retry_delay(with_backoff(10, 0, None), 9) == 10
    assert retry_delay(TaskTemplate(), 9) == 0


@pytest.mark.parametrize("factor", [math.nan, math.inf, -1.0, 0.5, -math.inf])
def test_a_factor_that_is_none_is_named(factor: float) -> None:
    with pytest.raises(InvalidArgument, match=r"retries\.backoff\.factor"):
        retry_delay(with_backoff(1, factor, 5), 1)


@given(
    st.floats(0, 1e9),
    st.floats(1, allow_infinity=False, allow_nan=False),
    st.none() | st.floats(0, 1e9),
    st.integers(1, 2**32 - 1),
)
def test_any_back_off_is_bounded(
    base: float, factor: float, cap: float | None, attempt: int
) -> None:
    delay = retry_delay(with_backoff(base, factor, cap), attempt)
    assert 0 <= delay <= (LONGEST if cap is None else cap + 1e-6)


def test_the_wait_for_a_slot_begins_when_the_back_off_has_passed() -> None:
    template = with_backoff(100, 1, None)
    template.metadata.timeouts.queued_timeout.seconds = 5
    limits = limits_of(template, 2)
    assert (limits.not_before, limits.queued) == (2100, 2105)


def test_no_more_attempts_than_can_be_stored() -> None:
    assert limits_of(with_backoff(1, 1, None, 2**32 - 1)).attempts == MOST_ATTEMPTS


def test_what_ends_first_is_what_it_ends_with() -> None:
    template = TaskTemplate()
    template.metadata.timeout.seconds = 50
    template.metadata.timeouts.deadline.seconds = 100
    limits = limits_of(template)
    end, error = limits.running_ends(1040)
    assert (end, error.code) == (1090, "MAX_RUNTIME_EXCEEDED")
    end, error = limits.running_ends(1060)
    assert (end, error.code) == (1100, "DEADLINE_EXCEEDED")


@table(
    ("timestamp", "age"),
    [
        ("1970-01-01T00:00:00Z", 1000.0),
        ("1970-01-01T00:16:40Z", 0.0),
        # Ahead of us, or no time at all: it is new.
        ("9999-12-31T23:59:59.999999-23:59", 0.0),
        ("yesterday", 0.0),
        ("", 0.0),
        ("1970-01-01", 0.0),
        ("0001-01-01T00:00:00+23:59", LONGEST),
    ],
)
def test_a_time_that_cannot_be_read_is_now(timestamp: str, age: float) -> None:
    assert age_of(timestamp, "f", 1000.0) == age


@given(st.text(max_size=40))
def test_any_text_is_an_age(text: str) -> None:
    assert 0 <= age_of(text, "f", 1e9) <= LONGEST


class Hands(Clock):
    """A clock that shows what it is told."""

    def __init__(self) -> None:
        self.walls = 1_000_000.0
        self.monotonics = 50.0

    def wall(self) -> float:
        return self.walls

    def monotonic(self) -> float:
        return self.monotonics


def update(
    attempts: int = 1, created: str = "1970-01-12T13:46:30Z", uid: str = "u"
) -> ActionUpdate:
    return ActionUpdate(
        key=b"/x/flyte/r1-a0",
        namespace="flyte",
        name="r1-a0",
        action_id=ActionId("p", "d", "r1", "a0"),
        parent="",
        phase=Phase.QUEUED,
        attempts=attempts,
        cache_status=0,
        output_uri="",
        uid=uid,
        create_revision=1,
        revision=1,
        recorded=False,
        creation_timestamp=created,
    )


def stored(attempts: int, occurred_at: str) -> ActionObject:
    return ActionObject.new(
        ObjectMeta("r1-a0", uid="u"),
        TaskActionSpec("p", "d", "r1", "a0"),
        TaskActionStatus(
            attempts=attempts, phase_history=(PhaseTransition("Queued", occurred_at),)
        ),
    )


@pytest.mark.parametrize("step", [-10 * 86400.0, 10 * 86400.0])
def test_ages_do_not_depend_on_the_wall_clock_once_seen(step: float) -> None:
    clock = Hands()
    ages = Ages(clock)
    ages.note("r1-a0", update(), live=False)
    assert ages.created("r1-a0") == 40.0
    clock.walls += step
    clock.monotonics += 5
    ages.note("r1-a0", update(attempts=2), live=True)
    assert ages.created("r1-a0") == 40.0
    assert ages.queued("r1-a0", stored(2, "1970-01-01T00:00:00Z")) == 55.0
    clock.monotonics += 5
    assert ages.queued("r1-a0", stored(2, "1970-01-01T00:00:00Z")) == 55.0


def test_an_attempt_that_began_before_it_was_seen_has_the_age_that_its_history_says() -> None:
    clock = Hands()
    ages = Ages(clock)
    ages.note("r1-a0", update(attempts=3), live=False)
    assert ages.queued("r1-a0", stored(3, "1970-01-12T13:46:35Z")) == 45.0
    clock.walls += 1e6
    assert ages.queued("r1-a0", stored(3, "1970-01-12T13:46:35Z")) == 45.0
    ages.note("r1-a0", update(attempts=1, uid="another"), live=True)
    assert ages.queued("r1-a0", stored(1, "")) == ages.created("r1-a0")


def test_what_is_seen_as_it_comes_is_new_whatever_its_creators_clock_says() -> None:
    clock = Hands()
    ages = Ages(clock)
    ages.note("r1-a0", update(created="1970-01-01T00:00:00Z"), live=True)
    assert ages.created("r1-a0") == clock.monotonics
