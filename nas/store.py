"""The store: studies, graphs, evaluations, episodes and policies, through SQLAlchemy.

One process writes, the driver of a search; others read. Every method of Store is one transaction.
"""

import contextlib
import json
import os
import shlex
import sqlite3
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from sqlalchemy import (
    JSON,
    BigInteger,
    ForeignKey,
    LargeBinary,
    UniqueConstraint,
    create_engine,
    event,
    inspect,
    null,
    select,
    text,
    update,
)
from sqlalchemy.engine import URL, Engine, make_url
from sqlalchemy.exc import ArgumentError, DatabaseError, IntegrityError, NoSuchModuleError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from controller.proposer import ProposerState
from detector.architecture import Architecture
from detector.cost import Cost
from detector.documents import differences, in_short
from detector.errors import UserError

SCHEMA_VERSION = 4
UPGRADES = {3: "ALTER TABLE evaluation ADD COLUMN gpus FLOAT"}  # from a version to the next
BUSY_TIMEOUT_S = 30.0
CREATE_ATTEMPTS = 10


class State(StrEnum):
    """Of an episode or an evaluation."""

    RUNNING = "running"
    DONE = "done"
    REUSED = "reused"  # the reward of an earlier episode with the same graph
    PRUNED = "pruned"  # stopped early, without a reward
    FAILED = "failed"


class Cause(StrEnum):
    """Why something failed."""

    OOM = "oom"
    NAN = "nan"
    INVALID = "invalid"
    TIMEOUT = "timeout"
    LOST = "lost"
    ERROR = "error"
    SKIPPED = "skipped"  # at a user's request


class Base(DeclarativeBase):
    pass


class SchemaRow(Base):
    __tablename__ = "schema"

    version: Mapped[int] = mapped_column(primary_key=True)


class StudyRow(Base):
    __tablename__ = "study"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    config: Mapped[dict[str, Any]] = mapped_column(JSON)
    seed: Mapped[int] = mapped_column(BigInteger)
    data_hash: Mapped[str]
    created: Mapped[datetime]  # this and all other times: see _now
    target: Mapped[int] = mapped_column(default=0)  # episodes that were last asked for


class ArchitectureRow(Base):
    __tablename__ = "architecture"

    hash: Mapped[str] = mapped_column(primary_key=True)
    graph: Mapped[dict[str, Any]] = mapped_column(JSON)


class EvaluationRow(Base):
    """One measurement of one graph. Costs are on the study's own maps, so they are kept here and not with the graph."""

    __tablename__ = "evaluation"
    __table_args__ = (UniqueConstraint("study_id", "architecture_hash", "purpose", "seed", "budget"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("study.id"))
    architecture_hash: Mapped[str] = mapped_column(ForeignKey("architecture.hash"))
    purpose: Mapped[str]
    seed: Mapped[int] = mapped_column(BigInteger)
    budget: Mapped[int]  # training steps
    gflops: Mapped[float]
    params: Mapped[int] = mapped_column(BigInteger)
    factor: Mapped[float]  # a reward is AP times this
    state: Mapped[str]
    cause: Mapped[str | None]
    ap: Mapped[float | None]
    seconds: Mapped[float | None]
    latency_ms: Mapped[float | None]  # of the pyramid, one image; measured where graphs are confirmed
    worker: Mapped[str | None]
    ended: Mapped[datetime | None]
    attempts: Mapped[int] = mapped_column(default=1)
    detail: Mapped[str | None]  # of a failure: what was raised, and where
    gpus: Mapped[float | None] = mapped_column(deferred=True)  # the trial held so many; deferred: new in version 4


class EpisodeRow(Base):
    __tablename__ = "episode"
    __table_args__ = (UniqueConstraint("study_id", "number"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("study.id"))
    number: Mapped[int]
    architecture_hash: Mapped[str] = mapped_column(ForeignKey("architecture.hash"))
    evaluation_id: Mapped[int] = mapped_column(ForeignKey("evaluation.id"), index=True)
    decisions: Mapped[list[int]] = mapped_column(JSON)
    log_prob: Mapped[float | None]
    policy_version: Mapped[int]
    state: Mapped[str]
    cause: Mapped[str | None]
    reward: Mapped[float | None]


class PolicyRow(Base):
    __tablename__ = "policy"
    __table_args__ = (UniqueConstraint("study_id", "version"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("study.id"))
    version: Mapped[int]
    weights: Mapped[bytes | None] = mapped_column(LargeBinary)
    optimizer: Mapped[bytes | None] = mapped_column(LargeBinary)
    baseline: Mapped[float | None]
    entropy: Mapped[float | None]
    probabilities: Mapped[list[list[float]] | None] = mapped_column(JSON)


class RequestRow(Base):
    """What another process asks of the driver."""

    __tablename__ = "request"

    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("study.id"))
    action: Mapped[str]
    episode: Mapped[int | None]
    created: Mapped[datetime]
    answer: Mapped[str | None]  # what came of it; None until the driver has seen it


class Action(StrEnum):
    """What can be asked of a search that runs."""

    STOP = "stop"  # once the trials that run have ended
    STOP_NOW = "stop now"
    PAUSE = "pause"
    CONTINUE = "continue"
    SKIP = "skip"  # an episode: it fails, and what its trial gives is dropped
    RETRY = "retry"  # an episode that failed


class Request(NamedTuple):
    """As stored. episode: of SKIP and RETRY."""

    id: int
    action: Action
    episode: int | None


class Study(NamedTuple):
    """A study's identity. config holds the resolved sections that decide its rewards and proposals."""

    name: str
    config: Mapping[str, Any]
    seed: int
    data_hash: str


class Episode(NamedTuple):
    """An episode as stored. reward is None while it runs and after it failed."""

    number: int
    architecture_hash: str
    evaluation_id: int
    decisions: tuple[int, ...]
    log_prob: float | None
    policy_version: int
    state: State
    cause: Cause | None
    reward: float | None


class Purpose(StrEnum):
    """What an evaluation is for."""

    SEARCH = "search"  # the reward of an episode
    RUNG = "rung"  # a shorter training, which says whether an episode is worth that
    CONFIRM = "confirm"  # a new seed for one of the best graphs
    PREPARATION = "preparation"  # another preparation of the proxy, for one of the best graphs; the seed is its own


class Measurement(NamedTuple):
    """What is measured of a graph: a study knows its evaluations by graph and this."""

    purpose: Purpose
    seed: int
    budget: int  # training steps


class Evaluation(NamedTuple):
    """An evaluation as stored. ap and reward (AP priced by cost) are None while it runs and after it failed."""

    id: int
    architecture_hash: str
    measurement: Measurement
    cost: Cost
    reward: float | None
    state: State
    cause: Cause | None
    ap: float | None
    latency_ms: float | None
    seconds: float | None = None
    ended: datetime | None = None
    detail: str | None = None
    gpus: float | None = None  # unknown to databases before schema version 4


class PolicyFigures(NamedTuple):
    """What is kept of every version of a policy. probabilities: see ProposerState."""

    version: int
    entropy: float | None
    probabilities: list[list[float]] | None


class Outcome(NamedTuple):
    """How an evaluation ended: an AP, or a cause."""

    ap: float | None
    cause: Cause | None = None
    seconds: float | None = None
    worker: str | None = None
    attempts: int = 1
    detail: str | None = None
    latency_ms: float | None = None
    gpus: float | None = None


class NoStudyError(UserError):
    """There is no such study, or not yet."""


class Store:
    """A database at a path or a SQLAlchemy URL. Raises UserError if it cannot be used.

    One of an earlier schema can be read as it is, and asked for something; upgrade: it is upgraded, as
    finish_evaluation needs it, if it is opened for writing.
    """

    def __init__(self, database: str, *, read_only: bool = False, upgrade: bool = True) -> None:
        self.database = shown(database)
        path = sqlite_path(database)
        try:
            if not read_only and (path is None or (path.is_file() and path.stat().st_size)):
                self._look_at(database)
            self._engine = _engine(database, read_only)
            self._begin = sessionmaker(self._engine, expire_on_commit=False).begin
            if not read_only:
                self._create(upgrade)
            version = self._known_version(self._engine)
            if version is None:
                raise UserError(f"--database {shown(database)}: is empty; run nas-search first")
            self._knows_gpus = version >= 4
        except (DatabaseError, UnicodeDecodeError) as error:  # the latter from names of tables in a damaged file
            raise UserError(_explain(database, error)) from error

    def close(self) -> None:
        self._engine.dispose()

    def _look_at(self, database: str) -> None:
        """Before anything is changed: what is refused stays as it is."""
        engine = _engine(database, read_only=True)
        try:
            self._known_version(engine)
        finally:
            engine.dispose()

    def _known_version(self, engine: Engine) -> int | None:
        """A store's schema version; None if the database is empty. Raises UserError if it is something else."""
        tables = set(inspect(engine).get_table_names())
        if SchemaRow.__tablename__ in tables:
            with engine.connect() as connection:
                version = connection.scalar(select(SchemaRow.version))
            if version is not None and version not in (*UPGRADES, SCHEMA_VERSION):
                raise UserError(
                    f"--database {self.database}: has schema version {version}, this program reads {SCHEMA_VERSION}"
                )
            if tables <= set(Base.metadata.tables):
                return version
        if tables:
            names = ", ".join(sorted(tables - {SchemaRow.__tablename__}))
            raise UserError(f"--database {self.database}: holds another program's tables ({names}); give another file")
        return None

    def _create(self, upgrade: bool) -> None:
        """Make or upgrade it. Searches that start at the same time get in each other's way, and then look again."""
        for attempt in range(CREATE_ATTEMPTS):
            try:
                Base.metadata.create_all(self._engine)
                with self._begin() as session:
                    version = session.scalar(select(SchemaRow.version))
                    if version is None:
                        session.add(SchemaRow(version=SCHEMA_VERSION))
                    else:  # fails now if nothing can be written
                        newer = SCHEMA_VERSION if upgrade else version
                        session.execute(update(SchemaRow).values(version=newer))
                        for older in range(version, newer):  # after it: SQLite's transaction has begun then
                            session.execute(text(UPGRADES[older]))
                return
            except DatabaseError as error:
                if not self._is_race(error) or attempt == CREATE_ATTEMPTS - 1:
                    raise
                time.sleep(0.1 * (attempt + 1))

    @staticmethod
    def _is_race(error: DatabaseError) -> bool:
        return isinstance(error, IntegrityError) or "already exists" in str(error) or "duplicate column" in str(error)

    def check_study(self, study: Study) -> int | None:
        """The id of the study, None if it is new. Raises UserError with the difference if it is another one."""
        with self._begin() as session:
            row = session.scalar(select(StudyRow).where(StudyRow.name == study.name))
            if row is None:
                return None
            old = {**row.config, "seed": row.seed}
            new = {**json.loads(json.dumps(study.config)), "seed": study.seed}
            if differing := in_short(differences(old, new)):
                raise UserError(
                    f"study {study.name!r} exists with another configuration: {differing}; go back to it, or give a "
                    "new --study NAME"
                )
            if row.data_hash != study.data_hash:
                raise UserError(
                    f"study {study.name!r} exists with other training data; go back to that, or give a new --study NAME"
                )
            return row.id

    def open_study(self, study: Study) -> int:
        """The id of the study, created if it is new. Raises UserError as check_study."""
        known = self.check_study(study)
        if known is not None:
            return known
        with self._begin() as session:
            row = StudyRow(**study._asdict(), created=_now())
            session.add(row)
            session.flush()
            return row.id

    def set_target(self, study_id: int, episodes: int) -> None:
        """How many episodes a search is to have, for those who look on."""
        with self._begin() as session:
            session.execute(update(StudyRow).where(StudyRow.id == study_id).values(target=episodes))

    def target(self, study_id: int) -> int:
        with self._begin() as session:
            return session.get_one(StudyRow, study_id).target

    def find_study(self, name: str) -> tuple[int, Study]:
        """Raises UserError naming the studies there are."""
        with self._begin() as session:
            row = session.scalar(select(StudyRow).where(StudyRow.name == name))
            if row is None:
                names = list(session.scalars(select(StudyRow.name).order_by(StudyRow.id)))
                there = f"it holds {', '.join(names)}" if names else "it holds no study yet"
                raise NoStudyError(f"--database {self.database}: has no study {name!r}; {there}")
            return row.id, Study(row.name, row.config, row.seed, row.data_hash)

    def studies(self) -> list[str]:
        """Their names, oldest first."""
        with self._begin() as session:
            return list(session.scalars(select(StudyRow.name).order_by(StudyRow.id)))

    def episodes(self, study_id: int) -> list[Episode]:
        """All episodes, by number."""
        with self._begin() as session:
            query = select(EpisodeRow).where(EpisodeRow.study_id == study_id).order_by(EpisodeRow.number)
            return [_episode(row) for row in session.scalars(query)]

    def architecture(self, graph_hash: str) -> Architecture:
        """The canonical graph."""
        with self._begin() as session:
            row = session.get_one(ArchitectureRow, graph_hash)
            return Architecture.from_dict(row.graph)

    def start_episode(
        self,
        study_id: int,
        number: int,
        architecture: Architecture,
        decisions: Sequence[int],
        log_prob: float | None,
        policy_version: int,
        measurement: Measurement,
        cost: Cost,
        factor: float = 1.0,
    ) -> Episode:
        """Record a proposal. A graph that an earlier episode owns shares its evaluation, and its end if it ended."""
        graph_hash = architecture.hash
        self._add_architecture(graph_hash, architecture)
        with self._begin() as session:
            evaluation = self._evaluation(session, study_id, graph_hash, measurement, cost, factor)
            row = EpisodeRow(
                study_id=study_id,
                number=number,
                architecture_hash=graph_hash,
                decisions=list(decisions),
                log_prob=log_prob,
                policy_version=policy_version,
            )
            _wait_for(row, evaluation)
            session.add(row)
            session.flush()
            return _episode(row)

    def end_rung(
        self, study_id: int, going_on: Sequence[int], pruned: Sequence[int], measurement: Measurement
    ) -> list[Episode]:
        """Let episodes whose graphs were trained shortly go on to a new measurement, and end the others."""
        with self._begin() as session:
            chosen = EpisodeRow.study_id == study_id, EpisodeRow.number.in_([*going_on, *pruned])
            rows = session.scalars(select(EpisodeRow).where(*chosen).order_by(EpisodeRow.number)).all()
            for row in rows:
                if row.number in pruned:
                    row.state = State.PRUNED
                else:
                    rung = session.get_one(EvaluationRow, row.evaluation_id)
                    cost = Cost(rung.gflops, rung.params)
                    graph_hash = row.architecture_hash
                    _wait_for(row, self._evaluation(session, study_id, graph_hash, measurement, cost, rung.factor))
            session.flush()
            return [_episode(row) for row in rows]

    def start_evaluation(
        self, study_id: int, graph_hash: str, measurement: Measurement, cost: Cost, factor: float
    ) -> Evaluation:
        """The evaluation of a known graph, running if it is new or failed before."""
        with self._begin() as session:
            row = self._evaluation(session, study_id, graph_hash, measurement, cost, factor)
            if row.state == State.FAILED:
                _start_anew(row)
            return _as_evaluation(row)

    def evaluations(self, study_id: int, purpose: Purpose) -> list[Evaluation]:
        """In the order in which they were started."""
        of_purpose = EvaluationRow.study_id == study_id, EvaluationRow.purpose == purpose
        with self._begin() as session:
            columns = (EvaluationRow, EvaluationRow.gpus if self._knows_gpus else null())
            rows = session.execute(select(*columns).where(*of_purpose).order_by(EvaluationRow.id))
            return [_as_evaluation(row)._replace(gpus=gpus) for row, gpus in rows]

    @staticmethod
    def _evaluation(
        session: Session, study_id: int, graph_hash: str, measurement: Measurement, cost: Cost, factor: float
    ) -> EvaluationRow:
        known = {"study_id": study_id, "architecture_hash": graph_hash, **measurement._asdict()}
        row = session.scalar(select(EvaluationRow).filter_by(**known))
        if row is None:
            row = EvaluationRow(**known, **cost._asdict(), factor=factor, state=State.RUNNING)
            session.add(row)
            session.flush()
        return row

    def _add_architecture(self, graph_hash: str, architecture: Architecture) -> None:
        """Graphs are shared by all studies; another search may add the same one at the same time."""
        row = ArchitectureRow(hash=graph_hash, graph=architecture.canonical().to_dict())
        with contextlib.suppress(IntegrityError), self._begin() as session:
            if session.get(ArchitectureRow, graph_hash) is None:
                session.add(row)

    def finish_evaluation(self, evaluation_id: int, outcome: Outcome) -> list[Episode]:
        """Record how a running evaluation ended, and with it every episode that waits for it; returns these.

        The lowest number owns the evaluation, the others reuse it. After a rung they wait on, for end_rung, unless it
        failed.
        """
        state = State.FAILED if outcome.cause else State.DONE
        finished = (
            update(EvaluationRow)
            .where(EvaluationRow.id == evaluation_id, EvaluationRow.state == State.RUNNING)
            .values(state=state, ended=_now(), **outcome._asdict())
            .returning(EvaluationRow.factor, EvaluationRow.purpose)
        )
        waiting = (
            select(EpisodeRow)
            .where(EpisodeRow.evaluation_id == evaluation_id, EpisodeRow.state == State.RUNNING)
            .order_by(EpisodeRow.number)
        )
        with self._begin() as session:
            ended = session.execute(finished).one_or_none()
            if ended is None:
                raise RuntimeError(f"evaluation {evaluation_id} is not running")
            if ended.purpose == Purpose.RUNG and state == State.DONE:
                return []
            rows = session.scalars(waiting).all()
            for place, row in enumerate(rows):
                row.state = State.REUSED if place and state == State.DONE else state
                row.cause, row.reward = outcome.cause, _reward(outcome.ap, ended.factor)
            session.flush()
            return [_episode(row) for row in rows]

    def retry(self, study_id: int, number: int) -> list[Episode]:
        """Let a failed episode run again, with all that failed with its graph; these, by number. The caller sees to it
        that no policy has learned from their batches.
        """
        with self._begin() as session:
            of_number = EpisodeRow.study_id == study_id, EpisodeRow.number == number
            episode = session.scalars(select(EpisodeRow).where(*of_number)).one()
            evaluation = session.get_one(EvaluationRow, episode.evaluation_id)
            if evaluation.state != State.FAILED:
                raise RuntimeError(f"episode {number} has not failed")
            _start_anew(evaluation)
            failed = EpisodeRow.evaluation_id == evaluation.id, EpisodeRow.state == State.FAILED
            rows = session.scalars(select(EpisodeRow).where(*failed).order_by(EpisodeRow.number)).all()
            for row in rows:
                row.state, row.cause = State.RUNNING, None
            session.flush()
            return [_episode(row) for row in rows]

    def ask(self, study_id: int, action: Action, episode: int | None = None) -> int:
        """Leave a request for whoever searches the study; its id."""
        with self._begin() as session:
            row = RequestRow(study_id=study_id, action=action, episode=episode, created=_now())
            session.add(row)
            session.flush()
            return row.id

    def requests(self, study_id: int) -> list[Request]:
        """Those without an answer, oldest first."""
        open_ones = RequestRow.study_id == study_id, RequestRow.answer.is_(None)
        with self._begin() as session:
            rows = session.scalars(select(RequestRow).where(*open_ones).order_by(RequestRow.id))
            return [Request(row.id, Action(row.action), row.episode) for row in rows]

    def answer(self, request_id: int, answer: str) -> None:
        """Close a request."""
        with self._begin() as session:
            session.execute(update(RequestRow).where(RequestRow.id == request_id).values(answer=answer))

    def answer_of(self, request_id: int) -> str | None:
        with self._begin() as session:
            return session.get_one(RequestRow, request_id).answer

    def withdraw(self, request_id: int) -> str | None:
        """Take a request back, unless it has an answer, which is returned."""
        with self._begin() as session:
            row = session.get_one(RequestRow, request_id, with_for_update=True)
            if row.answer is None:
                session.delete(row)
            return row.answer

    def save_policy(self, study_id: int, version: int, policy: ProposerState, keep: int) -> None:
        """Add a version, and drop the weights of all but the newest `keep`; their figures stay."""
        old = PolicyRow.study_id == study_id, PolicyRow.version <= version - keep
        with self._begin() as session:
            session.add(PolicyRow(study_id=study_id, version=version, **policy._asdict()))
            session.execute(update(PolicyRow).where(*old).values(weights=None, optimizer=None))

    def policy_figures(self, study_id: int) -> tuple[int, float | None]:
        """The newest version (0 before the first update) and its entropy."""
        query = select(PolicyRow.version, PolicyRow.entropy).where(PolicyRow.study_id == study_id)
        with self._begin() as session:
            newest = session.execute(query.order_by(PolicyRow.version.desc()).limit(1)).one_or_none()
            return (0, None) if newest is None else (newest.version, newest.entropy)

    def policy_history(self, study_id: int) -> list[PolicyFigures]:
        """All versions, oldest first."""
        columns = PolicyRow.version, PolicyRow.entropy, PolicyRow.probabilities
        query = select(*columns).where(PolicyRow.study_id == study_id).order_by(PolicyRow.version)
        with self._begin() as session:
            return [PolicyFigures(*row) for row in session.execute(query)]

    def created(self, study_id: int) -> datetime:
        """When a study began, in UTC."""
        with self._begin() as session:
            return session.get_one(StudyRow, study_id).created

    def policies(self, study_id: int) -> dict[int, ProposerState]:
        """The versions whose weights are kept."""
        query = select(PolicyRow).where(PolicyRow.study_id == study_id, PolicyRow.weights.is_not(None))
        with self._begin() as session:
            return {
                row.version: ProposerState(
                    row.weights or b"", row.optimizer or b"", row.baseline, row.entropy, row.probabilities
                )
                for row in session.scalars(query.order_by(PolicyRow.version))
            }


def check_apart(path: Path, option: str, database: str) -> None:
    """Raises UserError if a file that is to be written is the database."""
    of_database = sqlite_path(database)
    if of_database is not None and of_database.exists() and path.exists() and path.samefile(of_database):
        raise UserError(f"{option} {path}: is the database; give another file")


def _reward(ap: float | None, factor: float) -> float | None:
    return None if ap is None else ap * factor


def _wait_for(episode: EpisodeRow, evaluation: EvaluationRow) -> None:
    """Make an episode one that an evaluation decides, or has decided. A rung decides nothing unless it failed."""
    is_done = evaluation.state == State.DONE
    if evaluation.purpose == Purpose.RUNG and is_done:
        state = State.RUNNING
    else:
        state = State.REUSED if is_done else State(evaluation.state)
    is_rewarded = state == State.REUSED
    episode.evaluation_id, episode.state, episode.cause = evaluation.id, state, evaluation.cause
    episode.reward = _reward(evaluation.ap, evaluation.factor) if is_rewarded else None


def _now() -> datetime:
    """In UTC, and without saying so: databases differ in what they make of time zones."""
    return datetime.now(UTC).replace(tzinfo=None)


def _start_anew(evaluation: EvaluationRow) -> None:
    evaluation.state, evaluation.cause, evaluation.detail, evaluation.ended = State.RUNNING, None, None, None


def _as_evaluation(row: EvaluationRow) -> Evaluation:
    return Evaluation(
        row.id,
        row.architecture_hash,
        Measurement(Purpose(row.purpose), row.seed, row.budget),
        Cost(row.gflops, row.params),
        _reward(row.ap, row.factor),
        State(row.state),
        Cause(row.cause) if row.cause else None,
        row.ap,
        row.latency_ms,
        row.seconds,
        row.ended,
        row.detail,
    )


def _episode(row: EpisodeRow) -> Episode:
    return Episode(
        row.number,
        row.architecture_hash,
        row.evaluation_id,
        tuple(row.decisions),
        row.log_prob,
        row.policy_version,
        State(row.state),
        Cause(row.cause) if row.cause else None,
        row.reward,
    )


def _engine(database: str, read_only: bool) -> Engine:
    url = database_url(database)
    path = sqlite_path(database)
    if path is None:
        try:
            readers = {"postgresql_readonly": True} if read_only and url.get_backend_name() == "postgresql" else {}
            return create_engine(url, execution_options=readers, pool_pre_ping=True)
        except (NoSuchModuleError, ModuleNotFoundError, ArgumentError) as error:
            raise UserError(f"--database {shown(database)}: no driver for this kind of database ({error})") from error
    if read_only and not path.is_file():
        raise NoStudyError(
            f"--database {shown(database)}: no such file; run nas-search first, or name the one it wrote"
        )
    query = {"uri": "true", "mode": "ro" if read_only else "rwc"}
    if read_only and not _has_log(path) and not os.access(path.parent, os.W_OK):
        query["immutable"] = "1"  # nobody writes, and this reader could not make the files that WAL readers share
    url = url.set(database=f"file:{quote(str(path.absolute()))}").update_query_dict(query)
    engine = create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_S})

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: Any) -> None:
        connection.execute("PRAGMA foreign_keys=ON")
        if not read_only:
            _use_write_ahead_log(connection)
            connection.execute("PRAGMA synchronous=FULL")  # a committed reward survives a power cut

    return engine


def _use_write_ahead_log(connection: sqlite3.Connection) -> None:
    """So that readers and the writer do not block each other. SQLite wants the file alone for it, and does not wait."""
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
        time.sleep(0.01)


def _has_log(path: Path) -> bool:
    """Whether commits of a SQLite file still lie beside it."""
    log = path.with_name(path.name + "-wal")
    return log.exists() and log.stat().st_size > 0


def sqlite_path(database: str) -> Path | None:
    """The file of a SQLite database, None for a server's. Raises UserError if no file can be there."""
    url = database_url(database)
    if url.get_backend_name() != "sqlite":
        return None
    if url.host or not url.database or url.database == ":memory:":
        raise UserError(f"--database {shown(database)}: names no file; give a path, or sqlite:/// and a path")
    path = Path(str(url.database))
    if not path.parent.is_dir():
        raise UserError(f"--database {shown(database)}: its folder {path.parent} does not exist")
    if path.is_dir():
        raise UserError(f"--database {shown(database)}: is a folder; give a file")
    return path


def shown(database: str) -> str:
    """--database as it may be printed: without its password."""
    if "://" not in database:
        return database
    try:
        return make_url(database).render_as_string(hide_password=True)
    except ArgumentError:
        return "URL"


def flags_of(database: str, study: str = "default") -> str:
    """What a command needs to find a study, with a space before it; empty where defaults do."""
    of_database = "" if database == "nas.db" else f" --database {shlex.quote(shown(database))}"
    return of_database + ("" if study == "default" else f" --study {shlex.quote(study)}")


def database_url(database: str) -> URL:
    """A path, or a SQLAlchemy URL. Raises UserError."""
    if "://" not in database:
        return URL.create("sqlite", database=database)
    try:
        return make_url(database)
    except ArgumentError as error:
        raise UserError(f"--database {shown(database)}: is neither a path nor a database URL") from error


def _explain(database: str, error: Exception) -> str:
    reason = str(getattr(error, "orig", error)).splitlines()[0]
    if "not a database" in reason or "malformed" in reason or isinstance(error, UnicodeDecodeError):
        return f"--database {shown(database)}: is no SQLite database ({reason}); give another file"
    return f"--database {shown(database)}: cannot be used ({reason}); give a file in a folder that can be written"
