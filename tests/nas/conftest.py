"""Databases to test the store with: SQLite files, and a PostgreSQL server where its programs are installed."""

import contextlib
import itertools
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL, NullPool, create_engine, text
from sqlalchemy.exc import OperationalError

numbers = itertools.count()


def _program(name: str) -> str | None:
    """Debian keeps the server's programs apart."""
    debian = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(debian[-1]) if debian else shutil.which(name)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[URL]:
    """A server of our own on a socket of its own, ended with the tests. It does not run as root, so nobody does it."""
    initdb, server = _program("initdb"), _program("postgres")
    if initdb is None or server is None:
        pytest.skip("PostgreSQL is not installed")
    user: dict[str, Any] = {"user": "nobody"} if os.getuid() == 0 else {}
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))  # a socket's path must be short
    if user:
        shutil.chown(folder, user["user"])
    data = str(folder / "data")
    try:
        setup = [initdb, "-D", data, "-U", "tests", "-A", "trust", "--no-sync", "-E", "UTF8"]
        subprocess.run(setup, check=True, stdout=subprocess.DEVNULL, cwd=folder, **user)
        options = ["-c", "listen_addresses=", "-c", "timezone=Asia/Tokyo", "-k", str(folder)]
        with open(folder / "log", "w") as log:
            process = subprocess.Popen([server, "-D", data, *options], stdout=log, stderr=log, cwd=folder, **user)
        try:
            url = URL.create("postgresql+psycopg", "tests", database="postgres", query={"host": str(folder)})
            _wait_for(url)
            yield url
        finally:
            process.terminate()
            process.wait(30)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _wait_for(url: URL) -> None:
    engine = create_engine(url, poolclass=NullPool)
    for _ in range(100):
        with contextlib.suppress(OperationalError), engine.connect():
            return
        time.sleep(0.1)
    pytest.fail("PostgreSQL does not start")


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """What --database may be: a path, or the URL of an empty database."""
    if request.param == "sqlite":
        return str(tmp_path / "nas.db")
    url: URL = request.getfixturevalue("postgresql")
    name = f"test{next(numbers)}"
    with create_engine(url, isolation_level="AUTOCOMMIT", poolclass=NullPool).connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    return url.set(database=name).render_as_string(hide_password=False)
