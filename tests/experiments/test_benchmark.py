from datetime import datetime, timedelta

import pytest

pytest.importorskip("psutil")

from experiments.benchmark import minutes
from nas.budget import Budget
from nas.config import Config
from nas.store import Evaluation, Measurement, Purpose, State
from tests.nas.fakes import PRIOR


def ended(after_s: float, took_s: float | None) -> Evaluation:
    when = datetime(2026, 1, 1) + timedelta(seconds=after_s)
    measured = Measurement(Purpose.SEARCH, 0, 1)
    cost = Budget.of(Config()).cost(PRIOR)
    return Evaluation(0, "hash", measured, cost, 0.1, State.DONE, None, 0.1, None, took_s, when)


def test_time_runs_from_the_first_start_to_the_last_end() -> None:
    """The second trial starts first, ten seconds before the origin; one failed before it had a time."""
    assert minutes([ended(30, 20), ended(50, 60), ended(110, 5), ended(500, None)]) == pytest.approx(2.0)
