"""nas-export: which graphs it writes, and what it says of them."""

import json
from pathlib import Path

import pytest

from detector.architecture import PRIORS, Architecture
from nas.commands import export
from nas.confirm import Confirmation
from nas.results import by_reward, prior_episode
from nas.store import Outcome, Store, Study
from tests.nas.fakes import BUDGET, MEASUREMENT, SPACE, refused


@pytest.fixture
def exported(here: Path) -> Store:
    """A study as nas-search leaves it, with made-up rewards."""
    from detector.config_files import load_config
    from nas.config import Config
    from nas.service import _identity

    store = Store("nas.db")
    config = _identity(load_config("smoke", Config), PRIORS["nas-fpn"])
    study_id = store.open_study(Study("default", config, 0, "data"))
    for number, (name, reward) in enumerate((("nas-fpn", 0.3), ("fpn", 0.5))):
        graph = PRIORS[name]
        decisions, log_prob = SPACE.decisions(graph), None if number == 0 else -1.0
        episode = store.start_episode(study_id, number, graph, decisions, log_prob, 0, MEASUREMENT, BUDGET.cost(graph))
        store.finish_evaluation(episode.evaluation_id, Outcome(reward))
    return store


def test_best_is_exported_with_where_it_was_found(here: Path, exported: Store) -> None:
    assert export(["--best"]) == 0
    graph = Architecture.load(here / "best.json")
    assert graph.hash == PRIORS["fpn"].hash
    found = graph.found
    assert (found["study"], found["episode"], found["reward"], found["prior_reward"]) == ("default", 1, 0.5, 0.3)
    assert set(found["config"]) == {"data", "detector", "training"}


def test_top_and_episode_and_standard_output(here: Path, exported: Store, capsys) -> None:
    assert export(["--top", "5", "--output", "g.json"]) == 0
    assert sorted(path.name for path in here.glob("g*.json")) == ["g-1.json", "g-2.json"]
    assert capsys.readouterr().err == "study 'default' has 2 graphs with a reward, fewer than 5\n"
    assert Architecture.load(here / "g-1.json").found["episode"] == 1
    capsys.readouterr()
    assert export(["--episode", "0", "--output", "-"]) == 0
    assert Architecture.from_dict(json.loads(capsys.readouterr().out)).hash == PRIORS["nas-fpn"].hash


def test_a_graph_is_shown_and_drawn(here: Path, exported: Store, capsys) -> None:
    assert export(["--best", "--show", "--picture", "best.svg"]) == 0
    shown = capsys.readouterr().out
    assert "+ sum, A attention, [ ] output" in shown
    assert "best.svg: episode 1 as a picture" in shown
    assert "<svg" in (here / "best.svg").read_text()
    assert export(["--episode", "0", "--output", "-", "--show"]) == 0
    captured = capsys.readouterr()
    assert Architecture.from_dict(json.loads(captured.out)).hash == PRIORS["nas-fpn"].hash
    assert "[A]" in captured.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--best", "--database", "absent.db"], "absent.db: no such file"),
        (["--best", "--study", "x"], "has no study 'x'; it holds default"),
        (["--episode", "9"], "has no episode 9; it has 2, from 0"),
        ([], "one of the arguments --best --top --pareto --episode is required"),
        (["--best", "--output", "nas.db/best.json"], "cannot be written"),
        (["--best", "--output", "."], "is a folder; give a file"),
        (["--top", "2", "--output", "."], "is a folder; give a file"),
        (["--best", "--output", "nas.db"], "--output nas.db: is the database; give another file"),
        (["--best", "--output", "link.db"], "link.db: is the database; give another file"),
        (["--best", "--picture", "nas.db"], "--picture nas.db: is the database; give another file"),
        (["--pareto", "front", "--output", "x.json"], "--output: with --pareto DIR files are named by their episodes"),
        (["--best", "--study", ""], "'' given, must be a name of printable characters, without slashes"),
        (["--best", "--study", "a/../b"], "'a/../b' given, must be a name of printable characters, without slashes"),
        (["--best", "--picture", "graph.pdf"], "graph.pdf: give a name that ends in .svg or .png"),
        (["--best", "--picture", "no/graph.svg"], "no/graph.svg: its folder no does not exist"),
    ],
)
def test_export_mistakes(here: Path, exported: Store, capsys, arguments: list[str], message: str) -> None:
    before = (here / "nas.db").read_bytes()
    (here / "link.db").symlink_to("nas.db")
    assert message in refused(capsys, export(arguments))
    assert (here / "nas.db").read_bytes() == before


def test_a_database_that_is_damaged_underway_is_one_line(here: Path, exported: Store, capsys) -> None:
    exported.close()
    content = bytearray((here / "nas.db").read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)
    for leftover in here.glob("nas.db-*"):
        leftover.unlink()
    (here / "nas.db").write_bytes(content)
    status = export(["--best"])
    captured = capsys.readouterr().err
    assert status in (1, 2)
    assert captured.count("\n") == 1
    assert "nas.db" in captured


def confirm(store: Store, rewards: dict[str, float]) -> None:
    """New seeds for both graphs, which say what the search did not."""
    episodes = store.episodes(1)
    plan = Confirmation(store, 1, BUDGET, by_reward(episodes), prior_episode(episodes), runs=8, seed=0, steps=3)
    while (job := plan.next()) is not None:
        ap = rewards[job.architecture.hash] + 0.001 * ((job.measurement.seed + job.episode) % 2)
        plan.finish(job.evaluation_id, Outcome(ap, latency_ms=1.5 if job.is_timed else None))


def test_best_is_what_new_seeds_say_and_not_the_luckiest_reward(here: Path, exported: Store, capsys) -> None:
    prior, other = PRIORS["nas-fpn"].hash, PRIORS["fpn"].hash
    confirm(exported, {prior: 0.4, other: 0.35})
    assert export(["--best"]) == 0
    graph = Architecture.load(here / "best.json")
    assert graph.hash == prior
    assert graph.found["confirmed"]["beats_prior"] is None
    assert export(["--top", "2", "--output", "g.json"]) == 0
    second = Architecture.load(here / "g-2.json")
    assert second.hash == other
    confirmed = second.found["confirmed"]
    assert confirmed["beats_prior"] < 0.01
    assert confirmed["mean"] == pytest.approx(0.3505, abs=0.001)
    assert confirmed["runs"] > 1
    assert confirmed["spread"] == pytest.approx(0.0007, abs=0.0003)
    assert confirmed["latency_ms"] == 1.5
    assert "better than the prior with probability 0.00" in capsys.readouterr().out


def test_the_front_is_written_with_costs(here: Path, exported: Store, capsys) -> None:
    """fpn has the higher reward, and its five cells are cheaper than the prior's seven."""
    assert export(["--pareto", "front"]) == 0
    assert [path.name for path in (here / "front").iterdir()] == ["episode-1.json"]
    found = Architecture.load(here / "front" / "episode-1.json").found
    cost = BUDGET.cost(PRIORS["fpn"])
    assert (found["gflops"], found["params"], found["ap"]) == (cost.gflops, cost.params, 0.5)
    assert f"reward 0.5000, {cost.gflops:.4g} GFLOPs" in capsys.readouterr().out
