"""nas-search without Ray: everything that happens before a trial."""

import argparse
import contextlib
import json
import sqlite3
import sys
from pathlib import Path

import pytest

from detector.architecture import PRIORS
from detector.config_files import load_config
from nas import commands
from nas.commands import search
from nas.config import Config
from nas.confirm import Confirmation
from nas.lock import study_lock
from nas.results import by_reward, prior_episode
from nas.screen import Screen
from nas.service import _imported_meanwhile, _is_finished, _say_found
from nas.store import Outcome, Store, Study
from tests.nas.fakes import BUDGET, SEARCH, SPACE, refused, run, schedule


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "shapez"], "config shapez: cannot be read"),
        (["--config", "bccd"], "needs --data DIR"),
        (["--config", "smoke", "--data", "."], "this configuration generates its data"),
        (["--config", "bccd", "--data", "absent"], "absent: no such folder"),
        (["--config", "smoke", "--prior", "absent.json"], "prior absent.json"),
        (["--config", "smoke", "--database", "absent/nas.db"], "its folder absent does not exist"),
        (["--config", "smoke", "--database", "noise.db"], "is no SQLite database"),
        (["--seed", "9223372036854775808"], "must be 9223372036854775807 at most"),
        (["--episodes", "0"], "--episodes: 0 given, must be a whole number of 1 or more"),
        (["--workers", "x"], "--workers: x given"),
        (["--confirm-preparations", "2"], "--confirm-preparations: 2 given, must be 3 or more, or 0 for none"),
        (["--confirm-preparations", "101"], "--confirm-preparations: 101 given, must be 100 at most"),
        (
            ["--confirm-preparations", "3", "--confirm", "0"],
            "0 confirming runs leave no graphs to judge; give --confirm 6",
        ),
        (["--confirm-preparations", "3", "--episodes", "12"], "2 confirming runs leave no graphs to judge"),
        (
            ["--confirm-preparations", "3", "--set", f"proxy.seed={2**63 - 3}"],
            f"proxy.seed {2**63 - 3} leaves no seeds",
        ),
        (["--confirm-preparations", "3", "--config", "benchmark"], "with proxy.protocol tabular trials share nothing"),
        (["--gpus-per-trial", "1.5"], "--gpus-per-trial: 1.5 given"),
        (["--algorithm", "magic"], "invalid choice: 'magic'"),
        (["--config", "smoke", "--tensorboard", "/proc/x"], "--tensorboard: /proc/x/default cannot be written"),
    ],
)
def test_mistakes_are_one_line_exit_2_and_leave_nothing(here: Path, capsys, arguments: list[str], message: str) -> None:
    (here / "noise.db").write_text("no database" * 100)
    before = {path: path.read_bytes() for path in here.iterdir()}
    assert message in refused(capsys, search(arguments))
    assert {path: path.read_bytes() for path in here.iterdir()} == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["annotations"][0].update(bbox=[1, 1, 0, 4]), "annotation 1: bbox [1, 1, 0, 4] has no area"),
        (lambda d: d["images"][0].update(file_name="gone.png"), "lists: gone.png (id 1)"),
    ],
)
def test_broken_data_is_refused_before_anything_is_written(here, tiny_coco, capsys, change, message) -> None:
    path = tiny_coco / "annotations" / "instances_train.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    assert message in refused(capsys, search(["--config", "bccd", "--data", str(tiny_coco)]))
    assert not (here / "nas.db").exists()


def test_a_running_study_is_refused_with_its_holder(here: Path, capsys) -> None:
    with study_lock("nas.db", "default"):
        assert "is being searched by process" in refused(capsys, search(["--config", "smoke"]))


def test_a_finished_study_says_what_to_do(here: Path, capsys, monkeypatch) -> None:
    from detector.coco import load_split
    from nas.service import _identity

    config = load_config("smoke", Config)
    store = Store("nas.db")
    identity = _identity(config, PRIORS["nas-fpn"])
    store.open_study(Study("default", identity, 0, load_split(config.data, None, "train").hash))
    run(schedule_of(store), workers=2)
    assert search(["--config", "smoke", "--episodes", "12"]) == 0
    shown = capsys.readouterr().out
    assert "nothing to do; --episodes 24 extends it, --study NAME starts anew" in shown
    assert "next: nas-export --best" in shown
    assert "seed is 0, now 1" in refused(capsys, search(["--config", "smoke", "--seed", "1"]))
    assert "search.algorithm is reinforce, now random" in refused(
        capsys, search(["--config", "smoke", "--algorithm", "random"])
    )


@pytest.mark.parametrize(
    ("better", "message"),
    [
        (True, "winner with new seeds: episode "),
        (False, "with new seeds none is better than the prior: mean 0.5002"),
    ],
)
def test_what_new_seeds_say_is_said(here: Path, capsys, better: bool, message: str) -> None:
    store = Store("nas.db")
    store.open_study(Study("default", {"proxy": {"protocol": "frozen"}}, 0, "data"))
    run(schedule_of(store), workers=2)
    episodes = store.episodes(1)
    plan = Confirmation(store, 1, BUDGET, by_reward(episodes), prior_episode(episodes), runs=12, seed=0, steps=3)
    while (job := plan.next()) is not None:
        ap = 0.5 + 0.001 * (job.measurement.seed % 2) - 0.0005 if job.episode == 0 else 0.2 + 0.6 * better
        plan.finish(job.evaluation_id, Outcome(ap))
    _say_found(argparse.Namespace(database="nas.db", study="default", confirm=None), store, print)
    shown = capsys.readouterr().out
    assert message in shown
    assert ("the prior, the same: mean" in shown) == better
    assert ("next: --episodes 24 searches on" in shown) == (not better)
    assert ("--confirm-preparations 3 asks three others" in shown) == better


@pytest.mark.parametrize(("confirm", "is_said"), [(None, True), (0, False)])
def test_what_too_short_a_search_lacks_is_said(here: Path, capsys, confirm: int | None, is_said: bool) -> None:
    """Unless nobody wanted it."""
    store = Store("nas.db")
    store.open_study(Study("default", {"proxy": {"protocol": "frozen"}}, 0, "data"))
    run(schedule_of(store), workers=2)
    _say_found(argparse.Namespace(database="nas.db", study="default", confirm=confirm), store, print)
    assert ("which is what 36 episodes bring; --confirm 6 does it now" in capsys.readouterr().out) == is_said


def test_a_search_that_still_prepares_is_not_taken_for_none(here: Path, capsys) -> None:
    assert "no such file; run nas-search first" in refused(capsys, commands.status([]))
    with study_lock("nas.db", "default"):
        assert "study 'default' is being prepared by process " in refused(capsys, commands.status([]))
        Store("nas.db")
        assert "study 'default' is being prepared by process " in refused(capsys, commands.report([]))
        assert "has no study 'other'" in refused(capsys, commands.report(["--study", "other"]))


def schedule_of(store: Store):
    from nas.study import Schedule
    from tests.nas.fakes import PRIOR, controller

    return Schedule(store, 1, controller(), SPACE, PRIOR, BUDGET, episodes=12, batch=4, lag=1, seed=0, steps=3)


def test_gpus_that_are_not_there_are_refused(here: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray would wait for them for ever."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert "--gpus-per-trial 2: this machine has 1 GPUs" in refused(
        capsys, search(["--config", "smoke", "--gpus-per-trial", "2"])
    )


@pytest.mark.parametrize("address", ["127.0.0.1:1", "host.invalid:6379", "ray://127.0.0.1:10001"])
def test_an_address_where_no_cluster_is_is_refused_at_once(address: str) -> None:
    pytest.importorskip("ray")
    from detector.errors import UserError
    from nas.cluster import Cluster, cluster_session

    with (
        pytest.raises(UserError, match=f"--address {address}: "),
        cluster_session(Cluster("default", 1, 0.0, address, False)),
    ):
        pass


def test_an_address_where_no_cluster_is_is_refused_before_the_preparation(here: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("nas.proxy.prepare_proxy", lambda *_given: pytest.fail("it prepares"))
    command = ["--config", "smoke", "--set", "proxy.seed=99", "--address", "127.0.0.1:1"]
    assert "--address 127.0.0.1:1: no Ray cluster can be joined there" in refused(capsys, search(command))


def test_a_search_refused_while_it_prepares_leaves_nothing(here: Path, capsys) -> None:
    """The mistake mended, the same study name must be free for the mended configuration."""
    text = (Path(__file__).parents[2] / "experiments" / "smoke.yaml").read_text()
    (here / "c.yaml").write_text(text.replace("  protocol: frozen\n", "  protocol: frozen\n  cache_limit_gb: 1.0e-6\n"))
    assert "over proxy.cache_limit_gb" in refused(capsys, search(["--config", "c.yaml"]))
    assert [path.name for path in here.iterdir()] == ["c.yaml"]


def test_a_folder_that_cannot_be_written_is_refused_before_the_preparation(capsys) -> None:
    database = "/proc/nas.db"  # no user can write there, not even root
    assert f"--database {database}: " in refused(capsys, search(["--config", "smoke", "--database", database]))


def test_what_is_imported_meanwhile_is_whole_once_it_was_waited_for(here: Path, monkeypatch) -> None:
    (here / "slow_to_import.py").write_text("import time\ntime.sleep(0.3)\nWHOLE = True\n")
    monkeypatch.syspath_prepend(here)
    with _imported_meanwhile("slow_to_import") as wait:
        wait()
        assert sys.modules["slow_to_import"].WHOLE


def test_weights_files_are_named_by_their_content(here: Path) -> None:
    from nas.service import _identity

    config = load_config("smoke", Config)
    for name in ("a.pt", "b.pt"):
        (here / name).write_bytes(b"weights")
    identities = []
    for name in ("a.pt", "b.pt"):
        backbone = config.detector.backbone.model_copy(update={"weights": name})
        detector = config.detector.model_copy(update={"backbone": backbone})
        identities.append(_identity(config.model_copy(update={"detector": detector}), None))
    assert identities[0] == identities[1]
    assert "a.pt" not in json.dumps(identities[0])


def test_a_study_is_not_finished_before_the_policy_has_learned_from_its_last_batch(here: Path) -> None:
    """A kill between the last reward and the last update must not leave the policy behind."""
    config = load_config("smoke", Config)
    store = Store("nas.db")
    study = Study("default", {"search": SEARCH.model_dump(mode="json")}, 0, "data")
    run(schedule(store, 12), workers=2)
    args = argparse.Namespace(
        database="nas.db", study="default", episodes=12, confirm=0, seed=0, confirm_preparations=0
    )
    assert _is_finished(args, study, BUDGET, config, Screen())
    with contextlib.closing(sqlite3.connect("nas.db")) as connection, connection:
        connection.execute("DELETE FROM policy WHERE version = 3")
    assert not _is_finished(args, study, BUDGET, config, Screen())
