"""How often a job is tried, and when failures end a plan. Shared by the search and by the confirmation after it."""

from collections import Counter

from nas.store import Cause, Outcome

OF_THE_GRAPH = (Cause.NAN, Cause.INVALID)  # failures that would come again
MAX_ATTEMPTS = 3  # of an evaluation whose worker dies
MAX_FAILURES = 5  # evaluations that fail one after the other before a plan gives up
FIRST_FAILURES = 3  # before anything has succeeded, and all of one cause: it is no graph's fault


class Attempts:
    """Counts them by evaluation.

    What was lost with its worker is tried again, MAX_ATTEMPTS times in all. What ran out of memory is tried once more
    with a GPU of its own, where trials share one: beside others, that was not the graph's fault alone.
    """

    def __init__(self, *, shares_gpu: bool, has_succeeded: bool) -> None:
        """has_succeeded: whether the plan has a reward already, from before an interruption."""
        self.shares_gpu = shares_gpu
        self.has_succeeded = has_succeeded
        self._counts: Counter[int] = Counter()
        self._alone: set[int] = set()
        self._failures: list[Cause] = []  # the last ones, with no success since

    def begin(self, evaluation_id: int) -> None:
        self._counts[evaluation_id] += 1

    def count(self, evaluation_id: int) -> int:
        return self._counts[evaluation_id]

    def is_alone(self, evaluation_id: int) -> bool:
        """Whether the next attempt has a GPU of its own."""
        return evaluation_id in self._alone

    def again(self, evaluation_id: int, outcome: Outcome) -> bool:
        """Whether a job that ended so is to be handed out once more."""
        if outcome.cause == Cause.OOM and self.shares_gpu and evaluation_id not in self._alone:
            self._alone.add(evaluation_id)
            return True
        return outcome.cause == Cause.LOST and self._counts[evaluation_id] < MAX_ATTEMPTS

    def give_up(self, outcome: Outcome, what: str) -> str | None:
        """Why the plan ends with this outcome, if it does. what: is evaluated, in the plural."""
        if outcome.cause is None:
            self.has_succeeded = True
            self._failures.clear()
            return None
        self._failures.append(outcome.cause)
        if not self.has_succeeded and self._failures[-FIRST_FAILURES:] == [outcome.cause] * FIRST_FAILURES:
            return f"the first {FIRST_FAILURES} {what} failed, all with {described(outcome)}"
        if len(self._failures) >= MAX_FAILURES:
            return f"the last {MAX_FAILURES} {what} failed, the last one with {described(outcome)}"
        return None


def described(outcome: Outcome) -> str:
    """The cause, and the last line of what is known of it."""
    return f"{outcome.cause} ({outcome.detail.splitlines()[-1]})" if outcome.detail else str(outcome.cause)
