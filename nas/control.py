"""What a search does about requests that other processes leave in its database (nas-stop, nas-control)."""

from detector.errors import UserError
from nas.store import Action, Episode, Outcome, Request, Store
from nas.study import Job, Plan, Schedule

REFUSED = "refused: "  # how an answer begins that is a refusal


class Controlled:
    """A plan that can be paused and ended from outside, and the plans that follow it. Used as the plan itself is."""

    def __init__(self, plan: Plan, store: Store, study_id: int) -> None:
        self.plan = plan
        self.store = store
        self.study_id = study_id
        self.is_paused = False
        self.ending: Action | None = None  # STOP or STOP_NOW, once asked for
        self._out = 0  # jobs that were handed out and have not ended

    def turn_to(self, plan: Plan) -> None:
        """Go on with another plan, once all trials of this one have ended; a pause goes on, too."""
        self.plan = plan

    @property
    def stopped(self) -> str | None:
        return self.plan.stopped

    @property
    def settled(self) -> int:
        return self.plan.settled

    @property
    def is_finished(self) -> bool:
        return self.plan.is_finished or (self.ending is not None and self._out == 0)

    def next(self) -> Job | None:
        if self.is_paused or self.ending is not None:
            return None
        job = self.plan.next()
        self._out += job is not None
        return job

    def finish(self, evaluation_id: int, outcome: Outcome) -> list[Episode]:
        self._out -= 1
        return self.plan.finish(evaluation_id, outcome)

    def listen(self) -> None:
        """Do what was asked for since the last time, and answer."""
        for request in self.store.requests(self.study_id):
            try:
                answer = self._do(request)
            except UserError as error:
                answer = f"{REFUSED}{error}"
            self.store.answer(request.id, answer)

    def _do(self, request: Request) -> str:
        match request.action:
            case Action.PAUSE:
                self.is_paused = True
                return f"paused; {self._out} trials still run to their end"
            case Action.CONTINUE:
                self.is_paused = False
                return "goes on"
            case Action.STOP | Action.STOP_NOW:
                self.ending = request.action
                waits = "" if request.action == Action.STOP_NOW else f" once {self._out} trials have ended"
                return f"stops{waits}; the same nas-search command continues"
            case Action.SKIP | Action.RETRY:
                if not isinstance(self.plan, Schedule) or request.episode is None:
                    raise UserError("all episodes have ended; the best graphs are being confirmed")
                if request.action == Action.SKIP:
                    return self.plan.skip(request.episode)
                return self.plan.retry(request.episode)
