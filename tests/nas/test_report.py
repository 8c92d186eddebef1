"""nas-report: what the page says, and that it works in a browser."""

import contextlib
import hashlib
import json
import random
import re
import shlex
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from detector.architecture import PRIORS, Architecture
from detector.commands import _train_final_parser
from detector.config_files import load_config
from detector.cost import Cost
from nas import charts, summary
from nas.commands import _export_parser, _search_parser, report
from nas.config import PROXY_VERSION, Config
from nas.fidelity import measured
from nas.findings import Findings, are_comparable
from nas.report import GPU_HOURS, _effort, _figure, configuration, page
from nas.service import _identity
from nas.store import (
    Cause,
    Episode,
    Evaluation,
    Measurement,
    PolicyFigures,
    Purpose,
    State,
    Store,
    Study,
    flags_of,
)
from tests.nas.fakes import SPACE, refused, run, schedule

BEGAN = datetime(2026, 1, 1)
CHROMIUM = shutil.which("chromium")


def study(name: str = "default", prior: Architecture | None = PRIORS["nas-fpn"], algorithm: str = "reinforce") -> Study:
    config = load_config("smoke", Config)
    config = config.model_copy(update={"search": config.search.model_copy(update={"algorithm": algorithm})})
    return Study(name, json.loads(json.dumps(_identity(config, prior))), 3, "f" * 64)


def made(
    rewards: Sequence[float | None],
    confirmed: Sequence[Sequence[float]] = (),
    of: Study | None = None,
    versions: int = 0,
    by_others: Sequence[Sequence[float]] = (),
) -> Findings:
    """A search of these rewards (None: failed), two trials at a time of 4 s each, the prior first. Of its first
    episodes `confirmed` has the rewards of new runs, by_others those by other preparations.
    """
    trials, episodes = [], []
    for number, reward in enumerate(rewards):
        state, cause = (State.FAILED, Cause.NAN) if reward is None else (State.DONE, None)
        ended = BEGAN + timedelta(seconds=4 * (number // 2 + 1))
        trial = _trial(number, number, Purpose.SEARCH, 0, reward)
        detail = None if reward is not None else "Traceback\nNonFiniteLossError: <b>made up</b>"
        trials.append(trial._replace(state=state, cause=cause, ended=ended, seconds=4.0, detail=detail))
        log_prob = None if number == 0 else -1.0
        episodes.append(Episode(number, _hash(number), number, (0,) * 28, log_prob, 0, state, cause, reward))
    for purpose, anew in ((Purpose.CONFIRM, confirmed), (Purpose.PREPARATION, by_others)):
        for number, runs in enumerate(anew):
            trials += [_trial(10**6 + len(trials), number, purpose, seed, value) for seed, value in enumerate(runs)]
    stream = random.Random(0)
    options = [SPACE.sizes[kind] for kind in SPACE.kinds]
    figures = [
        PolicyFigures(version, 0.3, [[stream.random() for _ in range(size)] for size in options])
        for version in range(versions)
    ]
    graphs = {_hash(number): PRIORS["fpn" if number else "nas-fpn"].canonical() for number in range(len(rewards))}
    return Findings(of or study(), BEGAN, len(rewards), episodes, trials, figures, graphs)


def _hash(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def _trial(id_: int, number: int, purpose: Purpose, seed: int, reward: float | None) -> Evaluation:
    measurement, cost = Measurement(purpose, seed, 5), Cost(0.1 * (number % 7), 1000)
    return Evaluation(id_, _hash(number), measurement, cost, reward, State.DONE, None, reward, None)


def words(lines: Sequence[str]) -> str:
    return " ".join(lines)


def test_a_search_that_ran_gets_a_page(here: Path, capsys) -> None:
    """The command, on a database that a search without training has written."""
    store = Store("nas.db")
    plan = schedule(store, 12, name="default", of=study())
    run(plan, workers=2, failing=0.2)
    store.close()
    before = Path("nas.db").read_bytes()
    assert report([]) == 0
    assert "report.html: 12 episodes of study 'default'" in capsys.readouterr().out
    written = Path("report.html").read_text()
    assert "The search has proposed 12 pyramids" in written
    assert "<h2>Failures</h2>" in written
    assert Path("nas.db").read_bytes() == before
    assert "has no study 'other'; it holds default" in refused(capsys, report(["--compare", "other"]))
    assert "--output .: is a folder" in refused(capsys, report(["--output", "."]))


@pytest.mark.parametrize(
    ("best", "said"),
    [
        ([0.50, 0.51, 0.52], "It is better than the pyramid that the search started from"),
        ([0.301, 0.3005, 0.3024], "It was not shown to be better"),
    ],
)
def test_a_winner_is_called_what_new_seeds_say(best: list[float], said: str) -> None:
    findings = made([0.3, 0.4, 0.35], confirmed=[[0.3, 0.301, 0.302], best])
    assert said in words(summary.trust(findings))
    assert "the mean of 3 runs with new seeds; the pyramid that the search started from has 0.3010" in words(
        summary.found(findings)
    )


def test_what_is_not_confirmed_is_said_to_be_luck() -> None:
    findings = made([0.3, 0.4])
    assert "Nothing is confirmed yet" in words(summary.trust(findings))
    assert "a reward (AP) of 0.4000 in one run; the pyramid that the search started from had 0.3000" in words(
        summary.found(findings)
    )
    assert "is better" not in words(summary.trust(findings))


def test_only_figures_of_one_kind_stand_side_by_side() -> None:
    """The winner is confirmed already, the prior not yet: its single reward is another kind of figure."""
    findings = made([0.3, 0.4], confirmed=[[], [0.35]])
    assert "AP 0.3500, from one run with a new seed." in words(summary.found(findings))
    assert "It is still to be judged beside the pyramid that the search started from" in words(summary.trust(findings))


def test_without_a_prior_the_best_of_several_is_said_to_be_flattered() -> None:
    findings = made([0.3, 0.4], confirmed=[[0.3, 0.31], [0.35, 0.36]], of=study(prior=None))
    findings = replace(findings, episodes=[e._replace(log_prob=-1.0) for e in findings.episodes])
    assert "the best of 2 that were judged anew" in words(summary.trust(findings))
    assert "starting from nothing" in words(summary.found(findings))


def test_rewards_are_called_what_they_are() -> None:
    priced = study()
    priced.config["search"]["target_gflops"] = 0.5
    findings = made([0.3, 0.4], of=priced)
    assert "AP times a factor for its cost" in words(summary.found(findings))
    assert not are_comparable(priced, study())
    assert are_comparable(study(), study(algorithm="random"))
    cheaper = study()
    cheaper.config["search"]["target_gflops"] = 0.25
    assert not are_comparable(priced, cheaper)
    one_shot = study()
    one_shot.config["proxy"]["trial"]["steps"] = 0
    assert "with weights that all pyramids share" in words(summary.trust(made([0.3], of=one_shot)))
    assert "after a shortened training" in words(summary.trust(made([0.3])))


@pytest.mark.parametrize(
    ("theirs", "said"),
    [
        ([0.30, 0.31, 0.32], "It has beaten the search without learning"),
        ([0.39, 0.405, 0.41], "It has not beaten the search without learning"),
        ([0.50, 0.51, 0.52], "It was beaten by the search without learning"),
    ],
)
def test_whether_it_beat_its_baseline(theirs: list[float], said: str) -> None:
    ours = made([0.3, 0.4], confirmed=[[0.3, 0.31, 0.3], [0.40, 0.41, 0.40]])
    baseline = made([0.3, 0.4], confirmed=[[0.2, 0.21, 0.2], theirs], of=study("draws", algorithm="random"))
    assert said in words(summary.trust(ours, [baseline]))
    assert said in page(ours, [baseline])


def test_a_prior_that_nothing_beats_is_the_result() -> None:
    findings = made([0.4, 0.3], confirmed=[[0.4, 0.4], [0.3, 0.31]])
    assert "None was found that is better than the pyramid that the search started from" in words(
        summary.found(findings)
    )


@pytest.mark.parametrize(
    ("late", "said"), [(0.4, "has become better"), (0.3, "cannot be seen"), (0.2, "has become worse")]
)
def test_whether_it_learned(late: float, said: str) -> None:
    stream = random.Random(0)
    rewards = [mean + stream.gauss(0, 0.02) for mean in [0.3] * 101 + [late] * 100]
    assert said in words(summary.trust(made(rewards)))
    assert said not in words(summary.trust(made(rewards, of=study(algorithm="random"))))


def test_the_same_graph_again_is_no_evidence_of_learning() -> None:
    """A policy that has settled on one graph repeats one noisy measurement."""
    stream = random.Random(0)
    findings = made([stream.gauss(0.3, 0.02) for _ in range(101)] + [0.312] * 100)
    again = [e._replace(evaluation_id=150) if e.number > 100 else e for e in findings.episodes]
    assert findings.learned is not None
    assert replace(findings, episodes=again).learned is None


def test_nothing_yet() -> None:
    some = made([0.3, 0.4], of=study("some"))
    for findings in (made([]), made([None])):
        assert "None of them has a reward yet." in words(summary.found(findings))
        assert "<h2>Rewards</h2>" not in page(findings, [])
        assert "<td>some</td>" in page(findings, [some])
        assert "<td>default</td>" in page(some, [findings])
    assert "nas-control retry 0" in typed(page(made([None]), []))


def test_it_is_whole_while_the_search_goes_on(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An episode that begins and ends between two looks at the database."""
    store = Store("nas.db")
    plan = schedule(store, 8, of=study())
    run(plan, workers=1, stop_after=4)
    read = Store.evaluations

    def late(self: Store, study_id: int, purpose: Purpose) -> list[Evaluation]:
        found = read(self, study_id, purpose)
        monkeypatch.undo()
        run(plan, workers=1, stop_after=2)
        return found

    monkeypatch.setattr(Store, "evaluations", late)
    assert page(Findings.of(store, "default", 6), [])
    monkeypatch.undo()
    assert len(store.episodes(1)) > 4


def test_effort_counts_time_without_pauses() -> None:
    findings = made([0.3] * 20)
    assert findings.effort.hours == pytest.approx(40 / 3600)
    assert (findings.effort.workers, findings.effort.trials) == (2, 20)
    assert findings.effort.utilisation == pytest.approx(1.0)
    late = [trial._replace(ended=trial.ended + timedelta(days=3)) for trial in findings.trials[10:]]
    paused = replace(made([0.3] * 20), trials=[*findings.trials[:10], *late])
    assert paused.effort.hours == pytest.approx(40 / 3600)


def test_gpu_hours_are_those_that_trials_held() -> None:
    trials = made([0.3] * 20).trials
    halves = [trial._replace(gpus=0.5) for trial in trials[:10]]
    wholes = [trial._replace(gpus=1.0) for trial in trials[10:]]

    def shown(trials: Sequence[Evaluation]) -> str:
        return dict(_effort(replace(made([0.3] * 20), trials=trials)))[GPU_HOURS]

    seconds = [trial.seconds for trial in trials]
    expected = (0.5 * sum(seconds[:10]) + sum(seconds[10:])) / 3600
    assert replace(made([0.3] * 20), trials=[*halves, *wholes]).effort.gpu_hours == pytest.approx(expected)
    assert shown([trial._replace(gpus=3600 / sum(seconds)) for trial in trials]) == "1.00"
    assert shown([trial._replace(gpus=0.0) for trial in trials]) == "none"
    assert "not recorded" in shown([*halves, *trials[10:]])


def test_long_confirming_runs_are_no_pauses() -> None:
    findings = made([0.3] * 4, confirmed=[[0.3, 0.31]])
    end = BEGAN + timedelta(seconds=8)
    slow = [
        trial._replace(ended=end + timedelta(seconds=50 * number), seconds=50.0)
        for number, trial in enumerate(findings.trials[4:], 1)
    ]
    findings = replace(findings, trials=[*findings.trials[:4], *slow])
    assert findings.effort.hours == pytest.approx(108 / 3600)
    assert findings.effort_of_search.hours == pytest.approx(8 / 3600)
    assert findings.effort.utilisation == pytest.approx(116 / 216)


@pytest.mark.parametrize("rewards", [[0.3, 0.4], [0.3, None]])
@pytest.mark.parametrize("flags", [("", ""), (" --database 'a b.db'", " --study x")])
def test_every_command_it_names_can_be_typed(rewards: list[float | None], flags: tuple[str, str]) -> None:
    parsers = {"nas-search": _search_parser, "nas-export": _export_parser, "train-final": _train_final_parser}
    of_all = summary.Flags(*flags, " --config search.yaml --data DIR --seed 3")
    for line, _ in summary.following(made(rewards), of_all):
        command, *arguments = shlex.split(line)
        parsers[command]().parse_args(arguments)


def typed(written: str) -> str:
    """The page without the marks that keep words together."""
    return re.sub("</?span>", "", written)


def test_commands_say_what_data_and_configuration_they_need() -> None:
    """Only the defaults need no word."""
    shapes = Study(
        "default", json.loads(json.dumps(_identity(load_config("shapes", Config), PRIORS["nas-fpn"]))), 0, ""
    )
    bccd = shapes._replace(config=json.loads(json.dumps(_identity(load_config("bccd", Config), PRIORS["nas-fpn"]))))
    assert "nas-search --episodes 1 --algorithm random --study random" in typed(page(made([0.3], of=shapes), []))
    written = typed(page(made([0.3], of=bccd), []))
    assert "nas-search --config search.yaml --data DIR --episodes 1 --algorithm random" in written
    assert "train-final --arch best.json --data DIR --dry-run" in written
    assert 'href="#again"' in written  # where search.yaml is
    assert "nas-search --config search.yaml --seed 3 --episodes 1 --study again" in page(made([0.3]), [])


@pytest.mark.parametrize("prior", [None, *PRIORS.values()])
def test_its_configuration_is_that_of_the_search(tmp_path: Path, prior: Architecture | None) -> None:
    """The round trip: what the page says to save is what was searched with."""
    findings = made([0.3], of=study(prior=prior))
    (tmp_path / "search.yaml").write_text(configuration(findings))
    config = load_config(str(tmp_path / "search.yaml"), Config)
    assert json.loads(json.dumps(_identity(config, prior))) == findings.study.config


def test_names_are_quoted_in_commands_and_are_no_markup_in_charts() -> None:
    assert flags_of("a b.db", "x; rm y") == " --database 'a b.db' --study 'x; rm y'"
    hostile = made([0.3], of=study('<a href="https://evil.example/">best</a>'))
    names = [trace.name for trace in charts.compared([hostile]).data]
    assert not [name for name in names if "<" in name]


def test_bytes_that_are_no_text_are_one_line(here: Path, capsys) -> None:
    run(schedule(Store("nas.db"), 4, of=study()), workers=1)
    assert "must be a name of printable characters" in refused(capsys, report(["--study", "x\udcff"]))


def test_nothing_in_a_chart_can_end_its_script() -> None:
    titled = charts.entropy(made([0.3], versions=2)).update_layout(title="</script><script>alert(1)")
    assert _figure(titled, "name", "what").count("</script>") == 1


def test_names_and_details_cannot_be_markup() -> None:
    written = page(made([0.3, None, 0.4], of=study("</script><script>alert(1)")), [])
    assert "<script>alert(1)" not in written
    assert "<b>made up</b>" not in written


def test_other_searches_stand_beside_it() -> None:
    findings, random_one = made([0.3, 0.4]), made([0.3, 0.35], of=study("draws", algorithm="random"))
    written = page(findings, [random_one])
    assert "<td>draws</td>" in written
    assert "rewards cannot be\ncompared" not in written
    stranger = made([0.9], of=study("other")._replace(data_hash="0" * 64))
    assert "rewards cannot be\ncompared with it: other" in page(findings, [stranger])


def test_a_search_without_learning_is_the_baseline(here: Path) -> None:
    store = Store("nas.db")
    for name, algorithm in (("default", "reinforce"), ("draws", "random")):
        run(schedule(store, 8, algorithm, name, of=study(name, algorithm=algorithm)), workers=1)
    assert report([]) == 0
    assert "<td>draws</td>" in Path("report.html").read_text()
    assert report(["--study", "draws"]) == 0
    assert "<td>default</td>" not in Path("report.html").read_text()


def test_options_of_a_decision_are_named() -> None:
    assert charts.decision_name(29) == "#7 input b"
    assert charts.options_of(0, [0.1, 0.0, 0.0, 0.0, 0.2, 0.7]) == "#0 0.70, P7 0.20, P3 0.10"
    assert charts.options_of(3, [0.25, 0.75]) == "attention 0.75, sum 0.25"
    assert len(SPACE.kinds) == 28


@pytest.fixture(scope="module")
def large() -> Findings:
    """Ten thousand episodes, a thousand versions of the policy."""
    stream = random.Random(1)
    rewards = [0.3 + 0.1 * number / 10_000 + stream.gauss(0, 0.02) for number in range(10_000)]
    return made(rewards, confirmed=[[0.3, 0.31], [0.4, 0.41]], versions=1000)


def test_a_large_search_has_a_small_page(large: Findings) -> None:
    assert len(page(large, [large])) < 10 * 10**6
    numbers, highest = charts.best_so_far(large)
    assert highest == sorted(highest)
    assert (numbers[-1], highest[-1]) == (9999, max(e.reward for e in large.episodes))
    assert charts.running_mean(large)[1][0] == pytest.approx(sum(e.reward for e in large.episodes[:50]) / 50)


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    sync_api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
    with (
        sync_api.sync_playwright() as driver,
        contextlib.closing(driver.chromium.launch(executable_path=CHROMIUM, args=options)) as started,
    ):
        yield started


@pytest.mark.parametrize("width", [390, 1200])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_works_in_a_browser(tmp_path: Path, browser, large: Findings, width: int, scheme: str) -> None:
    """No errors, no requests, nothing wider than the screen, and every chart is drawn."""
    few = made([0.3, 0.4, None, 0.35], confirmed=[[0.3, 0.31], [0.4, 0.41]], versions=3)
    for number, findings in enumerate((few, large)):
        path = tmp_path / f"{number}.html"
        path.write_text(page(findings, [few]))
        with contextlib.closing(
            browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        ) as c:
            shown = c.new_page()
            problems: list[str] = []
            requests: list[str] = []
            shown.on("console", lambda message, to=problems: to.append(message.text))
            shown.on("pageerror", lambda error, to=problems: to.append(str(error)))
            shown.on("request", lambda request, to=requests: to.append(request.url))
            shown.goto(path.as_uri())
            shown.wait_for_function("document.querySelectorAll('.chart .main-svg').length >= 5")
            assert problems == []
            assert [url for url in requests if not url.startswith("data:")] == [path.as_uri()]
            assert shown.evaluate("document.documentElement.scrollWidth") <= width
            for chart in shown.query_selector_all(".chart"):
                assert chart.query_selector(".main-svg") is not None


def test_when_nothing_found_is_better_that_is_what_is_said_and_advised() -> None:
    findings = made([0.3, 0.35, 0.2], confirmed=[[0.30, 0.31, 0.305], [0.29, 0.30, 0.294], [0.1, 0.11, 0.104]])
    told = words(summary.trust(findings))
    assert "3 pyramids were judged anew" in told
    assert re.search(
        r"The best found one has 0\.29\d\d where the start has 0\.30\d\d: .* probability of 0\.[0-4]", told
    )
    steps = dict(summary.following(findings, summary.Flags("", "", "")))
    assert steps["nas-search --episodes 6"] == "searches on"
    assert steps["nas-export --best"] == "writes the pyramid that the search started from to best.json"
    assert next(reversed(steps)).startswith("nas-search --episodes 3 --algorithm random")


def test_what_other_preparations_say_is_called_that() -> None:
    confirmed = [[0.3, 0.301, 0.302], [0.40, 0.42, 0.41]]
    flags = summary.Flags(" --database x.db", "", "")
    asked = "nas-search --episodes 3 --confirm 6 --confirm-preparations 3 --database x.db"
    by_one = made([0.3, 0.4, 0.35], confirmed)
    assert asked in dict(summary.following(by_one, flags))
    by_others = made([0.3, 0.4, 0.35], confirmed, by_others=[[0.31, 0.3, 0.29], [0.36, 0.37, 0.35]])
    assert "the mean of 3 other preparations of the proxy; the pyramid that" in words(summary.found(by_others))
    assert "from 3 other preparations of the proxy)" in words(summary.trust(by_others))
    assert asked not in dict(summary.following(by_others, flags))
    assert "It cannot be set beside the search without learning" in words(summary.trust(by_one, [by_others]))


def test_what_is_not_confirmed_is_to_be_confirmed_first() -> None:
    steps = summary.following(made([0.3, 0.35, 0.2]), summary.Flags(" --database x.db", " --study y", ""))
    assert steps[0][0] == "nas-search --episodes 3 --confirm 12 --database x.db --study y"


def test_how_far_rewards_can_be_trusted_is_said_where_it_was_measured(tmp_path: Path, monkeypatch) -> None:
    """Of this very data, detector and proxy; not of another."""
    monkeypatch.setattr("nas.fidelity.preset_folder", lambda: tmp_path)
    assert measured(study()) is None
    content = {"preset": "smoke", "proxy_version": PROXY_VERSION, "graphs": 16, "trainings": 2}
    content |= {
        "tau": 0.7,
        "low": 0.4,
        "high": 0.9,
        "ceiling": 0.8,
        "pairs": 80,
        "right": 0.956,
        "right_low": 0.9,
        "right_high": 1.0,
    }
    (tmp_path / "proxy_fidelity.json").write_text(json.dumps(content))
    told = words(summary.trust(made([0.3, 0.4])))
    assert "Kendall's tau 0.70 (0.40 to 0.90" in told
    assert "Of the 80 pairs (of 120) that these trainings tell apart" in told
    assert "rewards order 96% rightly (90% to 100%)." in told
    other = study()
    other.config["proxy"]["trial"]["steps"] = 77
    assert measured(other) is None
    (tmp_path / "proxy_fidelity.json").write_text(json.dumps(content | {"proxy_version": PROXY_VERSION - 1}))
    assert measured(study()) is None


def test_charts_of_a_short_search_show_no_halves_and_nothing_below_nothing() -> None:
    findings = made([0.3, 0.2])
    figures = [PolicyFigures(version, 1.0, None) for version in range(2)]
    modes = [charts.entropy(replace(findings, policies=figures[:count])).data[0].mode for count in (1, 2)]
    assert modes == ["markers", "lines"]  # a line through one point would not be seen
    assert charts.entropy(findings).layout.xaxis.dtick == 1
    assert charts.costs(made([0.3])).layout.xaxis.range[0] == 0
    assert charts.running_mean(findings) == ([], [])
