"""nas-report: one page about a search, in one file that needs no network."""

import argparse
import base64
import html
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

import plotly.graph_objects as go
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from detector.command import write_file
from detector.config_files import load_config
from detector.presets import DEFAULT_CONFIG
from nas import charts, summary
from nas.config import Config
from nas.drawing import svg, text
from nas.findings import Findings, are_comparable
from nas.store import Episode, Store, Study, check_apart, flags_of
from nas.store_errors import with_store_errors

PICTURES = 6
PACKAGES = ("nas-detector", "torch", "torchvision", "timm", "ray", "numpy", "sqlalchemy")
GPU_HOURS = "GPU hours: that times the GPUs, or the share of one, that a trial holds"


def report(args: argparse.Namespace) -> int:
    """What nas-report does; its exit code."""
    return with_store_errors("nas-report", _report, args)


def _report(args: argparse.Namespace) -> int:
    store = Store(args.database, read_only=True)
    check_apart(args.output, "--output", args.database)
    findings = Findings.of(store, args.study, PICTURES)
    others = [Findings.of(store, name, 0) for name in dict.fromkeys(args.compare or []) if name != args.study]
    baselines = [] if others else _baselines(store, findings)
    write_file(
        args.output, page(findings, others or baselines, flags_of(args.database), flags_of("nas.db", args.study))
    )
    print(f"{args.output}: {findings.settled} episodes of study {args.study!r}; open it in a browser")
    return 0


def _baselines(store: Store, findings: Findings) -> list[Findings]:
    """Searches without learning in the same database, whose rewards mean the same."""
    if findings.algorithm == "random":
        return []
    studies = (store.find_study(name)[1] for name in store.studies() if name != findings.study.name)
    names = [study.name for study in studies if is_baseline(study, findings.study)]
    return [found for found in (Findings.of(store, name, 0) for name in names) if found.rewarded]


def is_baseline(study: Study, of: Study) -> bool:
    """Whether it searches without learning for the same."""
    return study.config["search"]["algorithm"] == "random" and are_comparable(study, of)


class Picture(NamedTuple):
    """A graph as it is shown: the picture's file as a URL, what it says in words, and figures."""

    title: str
    url: str
    description: str
    figures: Sequence[str]


def page(findings: Findings, others: Sequence[Findings], of_database: str = "", of_study: str = "") -> str:
    """The whole page. of_database, of_study: what the commands that it names need to find the study."""
    flags = summary.Flags(of_database, of_study, _config_flags(findings))
    baselines = [other for other in others if is_baseline(other.study, findings.study)]
    environment = Environment(loader=PackageLoader("nas", "."), autoescape=True, undefined=StrictUndefined)
    environment.filters["figure"] = _figure
    return environment.get_template("report.html").render(
        findings=findings,
        others=others,
        strangers=[other.study.name for other in others if not are_comparable(other.study, findings.study)],
        found=summary.found(findings),
        trust=summary.trust(findings, baselines),
        flags=f"{of_database}{of_study}",
        following=summary.following(findings, flags, has_baseline=bool(baselines)),
        numbers=_numbers(findings),
        pictures=[_picture(findings, episode) for episode in findings.best[:PICTURES]],
        prior=_prior(findings),
        charts=charts,
        comparison=[_row(study) for study in (findings, *others)] if others else [],
        effort=_effort(findings),
        configuration=configuration(findings),
        prior_file=prior_json(findings),
        measure=summary.measure(findings),
        command=f"nas-search{flags.config} --episodes {max(findings.target, len(findings.episodes))} --study again",
        versions=[(name, importlib.metadata.version(name)) for name in PACKAGES],
        plotly=Markup(get_plotlyjs()),
    )


def _figure(figure: go.Figure, name: str, what: str) -> Markup:
    """A chart, and what it shows for those who cannot see it."""
    data = figure.to_json()  # which writes < and > in another way, so that nothing in it can end the script
    label = html.escape(what, quote=True)
    return Markup(
        f'<div class="chart" id="{name}" role="img" aria-label="{label}"></div>'
        f'<script type="application/json" data-chart="{name}">{data}</script>'
    )


def _numbers(findings: Findings) -> list[tuple[str, str]]:
    """What is to be seen at a glance: what, and how much."""
    best = next(iter(findings.best), None)
    numbers = [("episodes", f"{findings.settled:,} of {max(findings.target, len(findings.episodes)):,}")]
    if best is not None:
        verdict = findings.verdicts.get(best.architecture_hash)
        value = f"{best.reward:.4f}" if verdict is None else f"{verdict.mean:.4f}"
        numbers.append(("best, confirmed" if verdict else "best, one run", value))
    if findings.prior is not None:
        confirmed = findings.verdicts.get(findings.prior.architecture_hash)
        value = f"{findings.prior.reward:.4f}" if confirmed is None else f"{confirmed.mean:.4f}"
        numbers.append((f"where it started, {'one run' if confirmed is None else 'confirmed'}", value))
    return [*numbers, ("time of searching", _duration(findings.effort.hours)), ("failed", str(_failed(findings)))]


def _failed(findings: Findings) -> int:
    return sum(count for _, count, _ in findings.causes)


def _picture(findings: Findings, episode: Episode) -> Picture:
    graph, prior = findings.graphs[episode.architecture_hash], findings.prior_graph
    verdict = findings.verdicts.get(episode.architecture_hash)
    cost = findings.evaluations[episode.evaluation_id].cost
    figures = [f"reward {episode.reward:.4f} in one run"]
    if verdict is not None:
        spread = "" if verdict.spread is None else f" ± {verdict.spread:.4f} (standard deviation)"
        by = f"{verdict.by} ({verdict.steps} steps)"
        figures.insert(0, f"{summary.measure(findings)} {verdict.mean:.4f}{spread}, {by}")
        if verdict.beats_prior is not None:
            figures.append(f"better than the start with probability {verdict.beats_prior:.2f}")
        if verdict.latency_ms is not None:
            figures.append(f"{verdict.latency_ms:.1f} ms on a busy worker")
    figures.append(f"{cost.gflops:.4g} GFLOPs, {cost.params:,} parameters")
    is_prior = findings.prior is not None and episode.number == findings.prior.number
    title = f"Episode {episode.number}" + (", where the search started" if is_prior else "")
    aligned = graph.aligned_with(prior) if prior is not None else graph
    return Picture(title, _as_url(svg(graph, prior)), text(aligned, prior), figures)


def _prior(findings: Findings) -> Picture | None:
    """Where the search started, for comparison, unless it is among the best."""
    prior = findings.prior
    if prior is None or prior in findings.best[:PICTURES]:
        return None
    return _picture(findings, prior)


def _as_url(picture: str) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(picture.encode()).decode()


def _row(findings: Findings) -> dict[str, str]:
    """Of a table of studies."""
    best, learned = next(iter(findings.best), None), findings.learned
    verdict = findings.verdicts.get(best.architecture_hash) if best is not None else None
    return {
        "study": findings.study.name,
        "who proposed": findings.algorithm,
        "seed": str(findings.study.seed),
        "episodes": f"{findings.settled:,}",
        "highest reward": f"{findings.ranked[0].reward:.4f}" if findings.ranked else "none",
        "mean of the last": f"{learned.last:.4f} ({learned.episodes})" if learned else "too few",
        "confirmed winner": f"{verdict.mean:.4f} ({verdict.by})" if verdict else "none",
        "episodes an hour": _an_hour(findings),
    }


def _effort(findings: Findings) -> list[tuple[str, str]]:
    effort = findings.effort
    return [
        ("trials, confirming runs included", f"{effort.trials:,}"),
        ("training steps in all of them", f"{effort.steps:,}"),
        ("time of searching, pauses of more than a minute left out", _duration(effort.hours)),
        ("of it confirming runs, about", _duration(max(0.0, effort.hours - findings.effort_of_search.hours))),
        ("episodes an hour", _an_hour(findings)),
        ("trials at a time, at most", str(effort.workers)),
        ("time in trials, summed over workers", _duration(effort.worker_hours)),
        (GPU_HOURS, _gpu_hours(effort.gpu_hours)),
        ("share of the workers' time spent in trials", f"{effort.utilisation:.0%}"),
    ]


def _gpu_hours(hours: float | None) -> str:
    if hours is None:
        return "not recorded by the version that began this search"
    return f"{hours:.2f}" if hours else "none"


def _an_hour(findings: Findings) -> str:
    """Confirming runs aside."""
    hours = findings.effort_of_search.hours
    return f"{findings.settled / hours:,.0f}" if hours else "unknown"


def _duration(hours: float) -> str:
    length = timedelta(hours=hours)
    if length < timedelta(minutes=2):
        return f"{length.total_seconds():.0f} s"
    return f"{length.total_seconds() / 60:.0f} min" if length < timedelta(hours=2) else f"{hours:.1f} h"


def configuration(findings: Findings) -> str:
    """What nas-search --config takes to search in the same way: YAML. A prior of the user's own is prior.json."""
    config: dict[str, Any] = {k: v for k, v in findings.study.config.items() if k != "proxy version"}
    prior = "none" if findings.prior_graph is None else findings.prior_name or "prior.json"
    config["search"] = {**config["search"], "prior": prior}
    return yaml.safe_dump(_without_nothing(config), sort_keys=False, width=110)


def _without_nothing(section: Mapping[str, Any]) -> dict[str, Any]:
    """Keys that are not set are left out."""
    values = {key: value for key, value in section.items() if value is not None}
    return {key: _without_nothing(value) if isinstance(value, Mapping) else value for key, value in values.items()}


def _config_flags(findings: Findings) -> str:
    """What nas-search needs besides the study: nothing where its defaults do."""
    ours = Config.model_validate(yaml.safe_load(configuration(findings)))
    default = load_config(DEFAULT_CONFIG, Config)
    same = default.model_copy(update={"search": default.search.model_copy(update={"algorithm": ours.search.algorithm})})
    seed = f" --seed {findings.study.seed}" if findings.study.seed else ""
    if ours == same:
        is_default = ours.search.algorithm == default.search.algorithm
        return ("" if is_default else f" --algorithm {ours.search.algorithm}") + seed
    return " --config search.yaml" + (" --data DIR" if ours.data.source == "coco" else "") + seed


def prior_json(findings: Findings) -> str | None:
    """The file that configuration() names, if it does."""
    graph = findings.prior_graph
    return None if graph is None or findings.prior_name else json.dumps(graph.to_dict(), indent=2)
