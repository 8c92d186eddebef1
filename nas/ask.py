"""nas-stop and nas-control: what is asked of a search while it runs."""

import argparse
import time

from detector.errors import UserError
from nas.control import REFUSED
from nas.lock import holder_of
from nas.store import Action, State, Store, sqlite_path
from nas.store_errors import with_store_errors

ANSWER_WITHIN_S = 20.0
LOOK_EVERY_S = 0.2


def stop(args: argparse.Namespace) -> int:
    """What nas-stop does; its exit code."""
    return with_store_errors("nas-stop", _stop, args)


def control(args: argparse.Namespace) -> int:
    """What nas-control does; its exit code."""
    return with_store_errors("nas-control", _control, args)


def _stop(args: argparse.Namespace) -> int:
    return _ask(args, Action.STOP_NOW if args.now else Action.STOP, None)


def _control(args: argparse.Namespace) -> int:
    action = Action(args.action)
    if (args.episode is None) == (action in (Action.SKIP, Action.RETRY)):
        example = f"nas-control {action} 12" if args.episode is None else f"nas-control {action}"
        raise UserError(f"{action} {'needs an' if args.episode is None else 'takes no'} episode: {example}")
    return _ask(args, action, args.episode)


def _ask(args: argparse.Namespace, action: Action, episode: int | None) -> int:
    """Leave the request, and wait for the answer of the search. A retry may wait for the next one."""
    Store(args.database, read_only=True).close()  # says so if there is nothing there, and makes no file
    store = Store(args.database, upgrade=False)  # an older program may be searching
    study_id, _ = store.find_study(args.study)
    if action == Action.RETRY and episode is not None:
        _check_failed(store, study_id, episode)
    request = store.ask(study_id, action, episode)
    answer = None
    is_idle = sqlite_path(args.database) is not None and holder_of(args.database, args.study) is None
    until = time.monotonic() + (0.0 if is_idle else ANSWER_WITHIN_S)
    try:
        while answer is None and time.monotonic() < until:
            time.sleep(LOOK_EVERY_S)
            answer = store.answer_of(request)
    finally:
        if answer is None and action != Action.RETRY:  # the next search is not to stop for it, nor after an interrupt
            answer = store.withdraw(request)
    if answer is None and action == Action.RETRY:
        print(f"study {args.study!r} is not being searched; the next nas-search tries episode {episode} again")
        return 0
    if answer is None and is_idle:
        raise UserError(f"study {args.study!r} is not being searched; nas-search continues it")
    if answer is None:
        raise UserError(
            f"study {args.study!r}: no search answered within {ANSWER_WITHIN_S:.0f} s; none runs, or it is preparing"
        )
    if answer.startswith(REFUSED):
        raise UserError(f"study {args.study!r}: {answer.removeprefix(REFUSED)}")
    print(f"study {args.study!r} {answer}")
    return 0


def _check_failed(store: Store, study_id: int, number: int) -> None:
    states = {episode.number: episode.state for episode in store.episodes(study_id)}
    if states.get(number) != State.FAILED:
        raise UserError(f"episode {number} is {states.get(number, 'not there yet')}, not failed")
