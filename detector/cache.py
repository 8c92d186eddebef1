"""Where derived files live, and how they come into being whole: under a lock, then renamed into place."""

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from detector.errors import UserError


def cache_folder() -> Path:
    """$NAS_CACHE, else nas-detector in the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nas-detector"
    return Path(os.environ.get("NAS_CACHE") or default).absolute()


def open_lock(path: Path, place: str = "the cache folder (NAS_CACHE moves it)") -> TextIO:
    """A file to lock; its content is kept. Raises UserError naming the place if it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return open(path, "a+", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{place}: {path} cannot be written ({error.strerror})") from error


def build_once(name: str, build: Callable[[Path], None]) -> Path:
    """The folder `name` in the cache; build(folder) fills it first, if no process on this machine has yet.

    Processes that ask at the same time wait for the one that builds. A build that fails or is killed leaves nothing
    under the final name.
    """
    final = cache_folder() / name
    if final.is_dir():
        return final
    with open_lock(final.with_name(final.name + ".lock")) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released by the system when the process ends, however it ends
        if not final.is_dir():
            partial = final.with_name(final.name + ".partial")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            build(partial)
            partial.rename(final)
    return final
