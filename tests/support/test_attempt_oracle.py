"""The oracle of attempts finds each broken promise that it is for."""

from __future__ import annotations

from etcd_actions import Phase
from tests.support.attempt_oracle import Reported, Start, attempt_problems, lost_attempts
from tests.support.table import table

LOST = ((1, "WorkerLost"),)
QUEUED = Reported("a", Phase.QUEUED, 1, recorded=False, earlier=())
RUNNING = QUEUED._replace(phase=Phase.RUNNING)
ENDED = QUEUED._replace(phase=Phase.SUCCEEDED)
MARKED = ENDED._replace(recorded=True)
AGAIN = QUEUED._replace(attempt=2, earlier=LOST)
RUNNING_AGAIN = AGAIN._replace(phase=Phase.RUNNING)
MARKED_AGAIN = AGAIN._replace(phase=Phase.SUCCEEDED, recorded=True)
FIRST, SECOND = Start("a", 1, "one"), Start("a", 2, "two")

STRAIGHT = [QUEUED, RUNNING, ENDED, MARKED]
OVER_TWO = [QUEUED, RUNNING, AGAIN, RUNNING_AGAIN, MARKED_AGAIN]


def test_what_is_as_promised_is_no_problem() -> None:
    assert attempt_problems(STRAIGHT, [FIRST]) == []
    assert attempt_problems(OVER_TWO, [FIRST, SECOND]) == []
    # The first attempt may be lost before its process notes its start.
    assert attempt_problems(OVER_TWO, [SECOND]) == []
    assert lost_attempts(OVER_TWO) == {"WorkerLost": 1}


@table(
    ("states", "starts", "found"),
    [
        (STRAIGHT, [FIRST, FIRST], {"started"}),
        (STRAIGHT, [FIRST, SECOND], {"late"}),
        (STRAIGHT, [], {"missing"}),
        (STRAIGHT, [FIRST, Start("b", 1, "one")], {"unknown"}),
        (OVER_TWO, [SECOND, FIRST], {"late"}),
        ([QUEUED, ENDED, MARKED], [FIRST], {"unclaimed"}),
        ([RUNNING, QUEUED, MARKED], [FIRST], {"back"}),
        ([RUNNING, ENDED, ENDED._replace(phase=Phase.FAILED), MARKED], [FIRST], {"twice"}),
        ([*STRAIGHT, RUNNING_AGAIN, MARKED_AGAIN], [FIRST, SECOND], {"twice", "unmarked"}),
        ([RUNNING, AGAIN._replace(attempt=3), MARKED], [FIRST], {"skipped", "back"}),
        ([*STRAIGHT[:-1], MARKED, ENDED], [FIRST], {"unmarked"}),
        ([RUNNING, ENDED], [FIRST], {"unmarked"}),
        ([RUNNING, MARKED._replace(phase=Phase.FAILED)], [FIRST], {"phase"}),
        ([RUNNING, RUNNING_AGAIN, MARKED_AGAIN._replace(earlier=())], [FIRST, SECOND], {"notes"}),
    ],
)
def test_each_broken_promise_is_found(
    states: list[Reported], starts: list[Start], found: set[str]
) -> None:
    problems = attempt_problems(states, starts)
    assert {each.partition(":")[0] for each in problems} == found
