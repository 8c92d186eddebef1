"""One search at a time on a study: an operating-system lock that ends with its holder, however that ends."""

import fcntl
import hashlib
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from detector.cache import cache_folder, open_lock
from detector.errors import UserError
from nas.store import database_url, shown, sqlite_path


@contextmanager
def study_lock(database: str, study: str) -> Iterator[None]:
    """Hold the study for this process. Raises UserError naming the holder if another process has it.

    The lock's file is gone afterwards.
    """
    path = _lock_path(database, study)
    while True:
        with open_lock(path, f"--database {shown(database)}") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.seek(0)
                holder = file.read().strip() or "another process"
                raise UserError(
                    f"study {study!r} in {shown(database)} is being searched by {holder}; stop that, or give "
                    "--study NAME"
                ) from error
            if not _is_at(path, file):
                continue  # its last holder removed it after we opened it: a lock on it would keep nobody out
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def holder_of(database: str, study: str) -> str | None:
    """Who searches the study, as far as can be seen from this machine; None if nobody does."""
    try:
        with open(_lock_path(database, study), encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return file.read().strip() or "another process"
    except OSError:
        pass  # no such file, or one that may not be read
    return None


def _is_at(path: Path, file: TextIO) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _lock_path(database: str, study: str) -> Path:
    """Beside a SQLite file, so that every user and container that shares it shares the lock; else in the cache."""
    digest = hashlib.sha256(study.encode()).hexdigest()[:8]
    path = sqlite_path(database)
    if path is not None:
        path = path.resolve()  # a link is the same database
        return path.with_name(f"{path.name}-{digest}.lock")
    server = hashlib.sha256(database_url(database).render_as_string(hide_password=True).encode()).hexdigest()[:16]
    return cache_folder() / "locks" / f"{server}-{digest}.lock"
