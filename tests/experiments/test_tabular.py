from pathlib import Path

import pytest

from detector.architecture import PRIORS
from detector.coco import load_split
from detector.config_files import load_config
from experiments import tabular
from experiments.runs import Run, Runs
from nas.config import PROXY_VERSION, Config
from nas.service import _identity
from nas.space import load_prior
from nas.store import Outcome, Store, Study
from nas.tabular import Row, Tabular, from_text, to_text
from tests.nas.fakes import BUDGET, MEASUREMENT, SPACE


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path / "runs", "v", "none", [])


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tabular, "load_config", lambda name, model: load_config("smoke", model))


def study(name: str, seed: int, **changes) -> Study:
    config = load_config("smoke", Config)
    identity = _identity(config, load_prior(config.search.prior)) | changes
    return Study(name, identity, seed, load_split(config.data, None, "train").hash)


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """One study of seed 3 that measured the published graph and fpn."""
    store = Store(str(tmp_path / "s.db"))
    study_id = store.open_study(study("reinforce-3", 3))
    for number, (name, reward) in enumerate((("nas-fpn", 0.4), ("fpn", 0.2))):
        graph = PRIORS[name]
        episode = store.start_episode(study_id, number, graph, [1], None, 0, MEASUREMENT, BUDGET.cost(graph), 0.9)
        store.finish_evaluation(episode.evaluation_id, Outcome(reward))
    return tmp_path / "s.db"


def test_pieces_hold_different_graphs_that_depend_on_their_number_only(runs: Runs) -> None:
    uniform = [graph.hash for piece in range(3) for graph, _ in tabular.wanted(runs, Run("uniform", piece))]
    assert len(set(uniform)) == 3 * tabular.PIECE
    assert uniform[: tabular.PIECE] == [graph.hash for graph, _ in tabular.wanted(runs, Run("uniform", 0))]
    near = [graph for graph, _ in tabular.wanted(runs, Run("neighbours", 0))]
    prior = SPACE.decisions(PRIORS["nas-fpn"])
    changed = [sum(a != b for a, b in zip(SPACE.decisions(graph), prior, strict=True)) for graph in near]
    assert min(changed) >= 1
    assert sum(changed) / len(changed) < 10


def test_pieces_and_searches_are_joined_by_graph(runs: Runs, database: Path) -> None:
    published = to_text(PRIORS["nas-fpn"])
    other = to_text(next(tabular.wanted(runs, Run("uniform", 0)))[0])
    runs.write(Run("uniform", 0), {"measured": [[other, 100, 0.1], [published, 100, 0.42]]})
    rows = {to_text(row.graph): row for row in tabular.joined(runs, [Run("uniform", 0)], database)}
    assert rows[published] == Row(from_text(published), "uniform", {100: 0.42, 3: 0.4})
    assert rows[other].rewards == {100: 0.1}
    assert rows[to_text(PRIORS["fpn"])].source == "reinforce"
    runs.write(Run("repeats", 0), {"measured": [[published, 101, 0.41]]})
    repeated = tabular.with_repeats(list(rows.values()), runs, [Run("repeats", 0)])
    assert {3: 0.4, 100: 0.42, 101: 0.41} in [row.rewards for row in repeated]


@pytest.mark.parametrize(
    "other",
    [
        study("old", 0, **{"proxy version": PROXY_VERSION - 1}),
        study("old", 0)._replace(data_hash="other data"),
        study("old", 0, search={"algorithm": "random", "prior": None}),
    ],
)
def test_searches_with_another_proxy_are_refused(runs: Runs, tmp_path: Path, other: Study) -> None:
    Store(str(tmp_path / "old.db")).open_study(other)
    with pytest.raises(SystemExit, match="'old' was measured with another proxy or data set"):
        tabular.joined(runs, [], tmp_path / "old.db")


def test_prediction_is_reported_for_what_was_held_out(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    rows = []
    for index, (graph, seed) in enumerate(
        pair for piece in range(4) for pair in tabular.wanted(runs, Run("uniform", piece))
    ):
        reward = 0.3 - 0.02 * len(graph.leaves)
        seeds = {seed: reward}
        if index % 10 == 0:
            seeds[101] = reward + (0.001 if index % 20 else -0.001)
        rows.append(Row(graph, "evolution" if index % 4 == 0 else "uniform", seeds))
    tabular.report(Tabular.measured(rows))
    out = capsys.readouterr().out
    assert "80 graphs, 88 rewards, noise 0.0007" in out
    assert "| all that evolution proposed | 20 |" in out
    assert float(out.split("| random tenths | 80 | ")[1].split(" |")[0]) > 0.5
