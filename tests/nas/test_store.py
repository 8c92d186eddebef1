import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from threading import Barrier

import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import SQLAlchemyError

from controller.proposer import ProposerState
from detector.architecture import PRIORS
from detector.errors import UserError
from nas.store import Action, Cause, Measurement, Outcome, Purpose, State, Store, Study, database_url
from tests.nas.fakes import COST, MEASUREMENT

STUDY = Study("default", {"search": {"lag": 1}, "data": {"source": "shapes"}}, 0, "abc")
STATE = ProposerState(b"weights", b"optimizer", 0.5, 1.2, [[0.25, 0.75]])


@pytest.fixture
def store(database: str) -> Iterator[Store]:
    opened = Store(database)
    yield opened
    opened.close()


@pytest.fixture
def other(database: str) -> Iterator[Engine]:
    """Another program's connection to the store's database."""
    engine = create_engine(database_url(database))
    yield engine
    engine.dispose()


def start(store: Store, number: int, name: str = "nas-fpn"):
    return store.start_episode(1, number, PRIORS[name], [1, 2], -3.5, 0, MEASUREMENT, COST)


def test_commits_are_visible_to_a_second_connection(store: Store, other: Engine) -> None:
    store.open_study(STUDY)
    evaluation = start(store, 0).evaluation_id
    store.finish_evaluation(evaluation, Outcome(0.25, None, 1.5, "host:1"))
    with other.connect() as connection:
        row = connection.execute(text("SELECT state, reward FROM episode")).one()
        assert tuple(row) == ("done", 0.25)
        if other.dialect.name == "sqlite":
            assert connection.execute(text("PRAGMA journal_mode")).scalar() == "wal"


def test_graph_and_episode_round_trip(store: Store) -> None:
    store.open_study(STUDY)
    episode = start(store, 0)
    assert store.episodes(1) == [episode]
    assert episode.decisions == (1, 2)
    assert episode.log_prob == -3.5
    assert store.architecture(episode.architecture_hash) == PRIORS["nas-fpn"].canonical()


def test_an_evaluation_ends_once(store: Store) -> None:
    store.open_study(STUDY)
    evaluation = start(store, 0).evaluation_id
    store.finish_evaluation(evaluation, Outcome(0.25))
    with pytest.raises(RuntimeError, match="is not running"):
        store.finish_evaluation(evaluation, Outcome(0.5))
    assert store.episodes(1)[0].reward == 0.25


def test_a_graph_that_ended_is_reused_at_once(store: Store) -> None:
    store.open_study(STUDY)
    store.finish_evaluation(start(store, 0).evaluation_id, Outcome(0.25))
    again = start(store, 1)
    assert (again.state, again.reward) == (State.REUSED, 0.25)


def test_studies_do_not_share_rewards(store: Store) -> None:
    store.open_study(STUDY)
    store.finish_evaluation(start(store, 0).evaluation_id, Outcome(0.25))
    other = store.open_study(STUDY._replace(name="other"))
    episode = store.start_episode(other, 0, PRIORS["nas-fpn"], [1], None, 0, MEASUREMENT, COST)
    assert episode.state == State.RUNNING


def test_only_the_newest_policies_keep_their_weights(store: Store, other: Engine) -> None:
    store.open_study(STUDY)
    for version in range(1, 6):
        store.save_policy(1, version, STATE, keep=3)
    assert list(store.policies(1)) == [3, 4, 5]
    assert store.policies(1)[5] == STATE
    with other.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM policy WHERE baseline = 0.5")).scalar() == 5


def test_the_same_study_opens_again_and_another_is_refused_with_the_difference(store: Store) -> None:
    assert store.open_study(STUDY) == store.open_study(STUDY)
    for change, message in (
        ({"seed": 3}, "seed is 0, now 3"),
        ({"data_hash": "xyz"}, "other training data"),
        ({"config": {**STUDY.config, "search": {"lag": 2}}}, r"search\.lag is 1, now 2"),
    ):
        with pytest.raises(UserError, match=message):
            store.open_study(STUDY._replace(**change))


def test_unknown_study_names_those_there_are(store: Store) -> None:
    store.open_study(STUDY)
    with pytest.raises(UserError, match="no study 'x'; it holds default"):
        store.find_study("x")


def test_readers_cannot_write(store: Store, database: str) -> None:
    reader = Store(database, read_only=True)
    with pytest.raises(SQLAlchemyError, match=r"read-?only"):
        reader.open_study(STUDY)
    reader.close()


def test_readers_need_an_existing_database(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        Store(str(tmp_path / "absent.db"), read_only=True)
    assert not (tmp_path / "absent.db").exists()


def test_files_that_are_no_store_are_refused_untouched(tmp_path: Path) -> None:
    noise, foreign, newer, alike = (tmp_path / name for name in ("noise.db", "foreign.db", "newer.db", "alike.db"))
    noise.write_bytes(b"not a database at all" * 100)
    with sqlite3.connect(foreign) as connection:
        connection.execute("CREATE TABLE songs (id INTEGER)")
    with sqlite3.connect(alike) as connection:
        connection.execute("CREATE TABLE request (id INTEGER)")
    Store(str(newer)).close()
    with sqlite3.connect(newer) as connection:
        connection.execute("UPDATE schema SET version = 99")
        connection.execute("CREATE TABLE added (id INTEGER)")
    for path, message in (
        (noise, "is no SQLite database"),
        (foreign, r"another program's tables \(songs\)"),
        (alike, r"another program's tables \(request\)"),
        (newer, "schema version 99, this program reads 4"),
    ):
        before = path.read_bytes()
        with pytest.raises(UserError, match=message):
            Store(str(path))
        assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("database", "message"),
    [
        ("/nowhere/at/all/nas.db", "its folder /nowhere/at/all does not exist"),
        ("/tmp", "is a folder"),
        ("nosuch://host/db", "no driver"),
        ("postgresql+nosuch://me:secret@host/db", r"--database postgresql\+nosuch://me:\*\*\*@host/db: no driver"),
        ("http:://", "neither a path nor a database URL|no driver"),
        ("sqlite://host/nas.db", "names no file"),
        (":memory:", "names no file"),
    ],
)
def test_places_that_cannot_hold_a_store(database: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Store(database)


def test_a_folder_that_cannot_be_written() -> None:
    """/proc takes no files from anyone, root included."""
    with pytest.raises(UserError, match="cannot be used"):
        Store("/proc/nas.db")


def test_names_with_characters_of_urls_are_names(tmp_path: Path) -> None:
    path = tmp_path / "run#1 %41?.db"
    Store(str(path)).close()
    assert path.is_file()
    Store(str(path), read_only=True)


def test_searches_that_make_a_database_at_the_same_time_all_get_it(database: str) -> None:
    ready = Barrier(8)  # all of them find no database

    def make(_: int) -> Store:
        ready.wait()
        return Store(database)

    with ThreadPoolExecutor(8) as pool:
        stores = list(pool.map(make, range(8)))
    assert stores[0].open_study(STUDY) == 1
    assert stores[7].find_study(STUDY.name)[0] == 1
    for store in stores:
        store.close()


def test_an_earlier_schema_is_read_as_it_is_and_upgraded_once(store: Store, other: Engine, database: str) -> None:
    store.open_study(STUDY)
    store.finish_evaluation(start(store, 0).evaluation_id, Outcome(0.25, gpus=0.5))
    assert store.evaluations(1, Purpose.SEARCH)[0].gpus == 0.5
    store.close()
    with other.begin() as connection:  # what version 3 was
        connection.execute(text("ALTER TABLE evaluation DROP COLUMN gpus"))
        connection.execute(text("UPDATE schema SET version = 3"))
    reader = Store(database, read_only=True)
    assert [(trial.ap, trial.gpus) for trial in reader.evaluations(1, Purpose.SEARCH)] == [(0.25, None)]
    reader.close()
    asking = Store(database, upgrade=False)
    assert asking.answer_of(asking.ask(1, Action.STOP)) is None
    assert asking.evaluations(1, Purpose.SEARCH)[0].gpus is None
    asking.close()
    with other.connect() as connection:
        assert connection.scalar(text("SELECT version FROM schema")) == 3
    ready = Barrier(4)

    def upgrade(_: int) -> Store:
        ready.wait()
        return Store(database)

    with ThreadPoolExecutor(4) as pool:
        stores = list(pool.map(upgrade, range(4)))
    for upgraded in stores:
        assert [(trial.ap, trial.gpus) for trial in upgraded.evaluations(1, Purpose.SEARCH)] == [(0.25, None)]
        upgraded.close()
    with other.begin() as connection:
        assert connection.scalar(text("SELECT version FROM schema")) == 4
        connection.execute(text("UPDATE schema SET version = 99"))
    with pytest.raises(UserError, match="schema version 99, this program reads 4"):
        Store(database)
    with other.begin() as connection:
        assert connection.scalar(text("SELECT version FROM schema")) == 99


def test_a_database_that_is_just_being_made_is_waited_for(tmp_path: Path) -> None:
    """SQLite itself refuses at once to change a journal's mode while another one writes."""
    path = tmp_path / "nas.db"
    with ThreadPoolExecutor(1) as pool, sqlite3.connect(path) as other:
        other.execute("BEGIN IMMEDIATE")
        opening = pool.submit(Store, str(path))
        with pytest.raises(TimeoutError):
            opening.result(timeout=0.5)
        other.rollback()
        opening.result().close()


def test_readers_need_no_right_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may write anywhere, so the right is taken away by name; no file that WAL readers share may appear."""
    store = Store(str(tmp_path / "nas.db"))
    store.open_study(STUDY)
    store.close()
    monkeypatch.setattr("os.access", lambda *_: False)
    before = sorted(path.name for path in tmp_path.iterdir())
    assert Store(str(tmp_path / "nas.db"), read_only=True).find_study(STUDY.name)[0] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_the_largest_seed_fits(store: Store) -> None:
    study = STUDY._replace(seed=2**63 - 1)
    store.open_study(study)
    assert store.find_study(study.name)[1] == study
    measurement = Measurement(Purpose.CONFIRM, 2**63 - 1, 3)
    start(store, 0)
    graph_hash = store.episodes(1)[0].architecture_hash
    store.start_evaluation(1, graph_hash, measurement, COST, 1.0)
    assert store.evaluations(1, Purpose.CONFIRM)[0].measurement == measurement


def test_a_request_is_open_until_it_is_answered_or_taken_back(store: Store, database: str) -> None:
    store.open_study(STUDY)
    asking = Store(database)
    first, second = asking.ask(1, Action.SKIP, 3), asking.ask(1, Action.PAUSE)
    assert [(r.id, r.action, r.episode) for r in store.requests(1)] == [
        (first, Action.SKIP, 3),
        (second, Action.PAUSE, None),
    ]
    store.answer(first, "done")
    assert asking.answer_of(first) == "done"
    assert asking.withdraw(first) == "done"
    assert asking.withdraw(second) is None
    assert store.requests(1) == []
    asking.close()


def test_times_are_utc(store: Store) -> None:
    store.open_study(STUDY)
    store.finish_evaluation(start(store, 0).evaluation_id, Outcome(0.25))
    ended = store.evaluations(1, Purpose.SEARCH)[0].ended
    assert ended is not None
    assert abs((datetime.now(UTC).replace(tzinfo=None) - ended).total_seconds()) < 60


def test_a_retry_lets_all_run_again_that_failed_with_the_graph(store: Store) -> None:
    store.open_study(STUDY)
    first = start(store, 0)
    store.finish_evaluation(first.evaluation_id, Outcome(None, Cause.ERROR, detail="Traceback"))
    assert start(store, 1).state == State.FAILED
    with pytest.raises(RuntimeError, match="has not failed"):
        store.retry(1, start(store, 2, "fpn").number)
    assert [episode.state for episode in store.retry(1, 1)] == [State.RUNNING] * 2
    assert store.evaluations(1, Purpose.SEARCH)[0].cause is None
    store.finish_evaluation(first.evaluation_id, Outcome(0.25))
    assert [episode.reward for episode in store.episodes(1)] == [0.25, 0.25, None]
