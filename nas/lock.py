"""One search at a time on a study: an operating-system lock that ends with its holder, however that ends."""

import fcntl
import hashlib
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from detector.cache import cache_folder, open_lock
from detector.errors import UserError
from nas.store import database_url


@contextmanager
def study_lock(database: str, study: str) -> Iterator[None]:
    """Hold the study for this process. Raises UserError naming the holder if another process has it."""
    with open_lock(_lock_path(database, study)) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise UserError(
                f"study {study!r} in {database} is being searched by {holder}; stop that, or give --study NAME"
            ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def _lock_path(database: str, study: str) -> Path:
    """Beside a SQLite file, so that every user and container that shares it shares the lock; else in the cache."""
    url = database_url(database)
    digest = hashlib.sha256(study.encode()).hexdigest()[:8]
    if url.get_backend_name() == "sqlite" and url.database:
        path = Path(str(url.database))
        return path.with_name(f"{path.name}-{digest}.lock")
    server = hashlib.sha256(url.render_as_string(hide_password=True).encode()).hexdigest()[:16]
    return cache_folder() / "locks" / f"{server}-{digest}.lock"
