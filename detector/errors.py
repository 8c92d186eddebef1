"""The two errors that cross module borders: the user's mistake, and a training run that diverged."""


class UserError(Exception):
    """A mistake the user can mend. The message is one line: what is wrong, where, and what would be right."""


class NonFiniteLossError(RuntimeError):
    """The training loss became infinite or NaN; the run is over and its weights are worthless."""
