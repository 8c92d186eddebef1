"""The errors that cross module borders: the user's mistake, and a run that failed, as one that diverged."""


class UserError(Exception):
    """A mistake the user can mend. The message is one line: what is wrong, where, and what would be right."""


class RunFailedError(RuntimeError):
    """The run is over for a reason that lies in no mistake of the user. The message is one line."""


class NonFiniteLossError(RunFailedError):
    """The training loss became infinite or NaN; the run is over and its weights are worthless."""
