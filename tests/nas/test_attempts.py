import pytest

from nas.attempts import FIRST_FAILURES, MAX_ATTEMPTS, MAX_FAILURES, Attempts
from nas.store import Cause, Outcome


def failed(cause: Cause) -> Outcome:
    return Outcome(None, cause, detail="Traceback\nwhat happened")


@pytest.mark.parametrize("shares_gpu", [False, True])
def test_what_is_lost_is_tried_three_times(shares_gpu: bool) -> None:
    attempts = Attempts(shares_gpu=shares_gpu, has_succeeded=False)
    for number in range(1, MAX_ATTEMPTS + 1):
        attempts.begin(7)
        assert attempts.again(7, failed(Cause.LOST)) == (number < MAX_ATTEMPTS)
        assert not attempts.is_alone(7)
    assert attempts.count(7) == MAX_ATTEMPTS


def test_what_ran_out_of_memory_beside_others_is_tried_once_alone() -> None:
    attempts = Attempts(shares_gpu=True, has_succeeded=False)
    attempts.begin(7)
    assert attempts.again(7, failed(Cause.OOM))
    assert attempts.is_alone(7)
    assert not attempts.is_alone(8)
    attempts.begin(7)
    assert not attempts.again(7, failed(Cause.OOM))


@pytest.mark.parametrize("cause", [Cause.OOM, Cause.NAN, Cause.INVALID, Cause.TIMEOUT, Cause.ERROR])
def test_nothing_else_is_tried_again(cause: Cause) -> None:
    attempts = Attempts(shares_gpu=False, has_succeeded=False)
    attempts.begin(7)
    assert not attempts.again(7, failed(cause))


def test_a_bad_start_with_one_cause_ends_a_plan() -> None:
    attempts = Attempts(shares_gpu=False, has_succeeded=False)
    reasons = [attempts.give_up(failed(Cause.ERROR), "trials") for _ in range(FIRST_FAILURES)]
    assert reasons == [None, None, "the first 3 trials failed, all with error (what happened)"]


def test_different_causes_at_the_start_and_failures_after_a_success_take_longer() -> None:
    mixed = Attempts(shares_gpu=False, has_succeeded=False)
    causes = [Cause.NAN, Cause.NAN, Cause.OOM, Cause.NAN, Cause.NAN]
    assert [mixed.give_up(failed(cause), "trials") is None for cause in causes] == [True] * 4 + [False]
    for later in (Attempts(shares_gpu=False, has_succeeded=True), Attempts(shares_gpu=False, has_succeeded=False)):
        later.give_up(Outcome(0.3), "trials")
        reasons = [later.give_up(failed(Cause.NAN), "trials") for _ in range(MAX_FAILURES)]
        assert reasons == [None] * 4 + ["the last 5 trials failed, the last one with nan (what happened)"]


def test_a_success_between_failures_starts_the_count_anew() -> None:
    attempts = Attempts(shares_gpu=False, has_succeeded=True)
    for _ in range(3):
        assert all(attempts.give_up(failed(Cause.NAN), "trials") is None for _ in range(MAX_FAILURES - 1))
        assert attempts.give_up(Outcome(0.3), "trials") is None
