"""The charts of a report, as Plotly draws them: data and layout, in colours that the colour-blind tell apart."""

import html
import statistics
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from detector.architecture import LEVELS, OPS
from nas.findings import RECENT, Findings
from nas.space import CELL_DECISIONS
from nas.store import Episode, State

# Legible on light and on dark ground; told apart by the colour-blind, and by their symbols and dashes.
BLUE, ORANGE, GREEN, GREY = "#2f7fc1", "#d9730d", "#1b9e77", "#8a8f98"
OTHERS = (GREEN, "#b5559b", "#a6761d")
MOST_DOTS = 2000
MOST_VERSIONS = 200
FEWEST = 3  # episodes that a mean is taken of
FEW = 12  # updates, each of which has its tick


def rewards(findings: Findings, others: Sequence[Findings] = ()) -> go.Figure:
    """Every trial a dot, the running mean and the best so far as lines, and the prior; of others the running mean."""
    figure = _figure("episode", "reward")
    shown = _thinned(findings.rewarded)
    own = [episode for episode in shown if episode.state == State.DONE]
    again = [episode for episode in shown if episode.state == State.REUSED]
    figure.add_scatter(**_dots(own), name="judged", marker={"color": BLUE, "size": 5, "opacity": 0.55})
    if again:
        marker = {"color": BLUE, "size": 5, "opacity": 0.55, "symbol": "circle-open"}
        figure.add_scatter(**_dots(again), name="judged before", marker=marker)
    figure.add_scatter(
        **_line(*running_mean(findings)), name=f"mean of the last {window(findings)}", line={"color": BLUE}
    )
    steps = {"color": ORANGE, "shape": "hv", "dash": "dash"}
    figure.add_scatter(**_line(*best_so_far(findings)), name="best so far", line=steps)
    if findings.prior is not None and findings.prior.reward is not None:
        span = [0, max(episode.number for episode in findings.episodes)]
        constant = {"color": GREY, "dash": "dot"}
        figure.add_scatter(**_line(span, [findings.prior.reward] * 2), name="where it started (one run)", line=constant)
    for number, other in enumerate(others):
        line = {"color": OTHERS[number % len(OTHERS)], "dash": "longdash"}
        figure.add_scatter(**_line(*running_mean(other)), name=f"mean of {_name(other)}", line=line)
    limits = _most_of([e.reward for e in findings.rewarded if e.reward is not None])
    drawn = [y for trace in figure.data if trace.mode == "lines" for y in trace.y]  # lines are to be seen whole
    figure.update_yaxes(range=limits and [min([limits[0], *drawn]), max([limits[1], *drawn])])
    return figure


def compared(studies: Sequence[Findings]) -> go.Figure:
    """Running means, and the best so far, of several studies."""
    figure = _figure("episode", "reward")
    colours = (BLUE, ORANGE, *OTHERS)
    for number, findings in enumerate(studies):
        name, colour = _name(findings), colours[number % len(colours)]
        figure.add_scatter(
            **_line(*running_mean(findings)), name=f"{name}: mean of {window(findings)}", line={"color": colour}
        )
        line = {"color": colour, "shape": "hv", "dash": "dash"}
        figure.add_scatter(**_line(*best_so_far(findings)), name=f"{name}: best so far", line=line)
    return figure


def entropy(findings: Findings) -> go.Figure:
    """How undecided the policy is, in nats a decision, by version."""
    known = [policy for policy in findings.policies if policy.entropy is not None]
    figure = _by_update("entropy (nats a decision)", len(known))
    figure.add_scatter(**_line([p.version for p in known], [p.entropy for p in known]), line={"color": BLUE})
    figure.update_yaxes(rangemode="tozero")
    return figure


def probabilities(findings: Findings) -> go.Figure:
    """For every decision the probability of its likeliest option, by version; which one that is where one points."""
    known = [policy for policy in findings.policies if policy.probabilities]
    stride = -(-len(known) // MOST_VERSIONS) or 1
    versions = known[::-stride][::-1]
    rows = len(versions[-1].probabilities or []) if versions else 0
    names = [decision_name(row) for row in range(rows)]
    figure = _by_update("", len(versions))
    tops: list[list[float]] = [[] for _ in range(rows)]
    texts: list[list[str]] = [[] for _ in range(rows)]
    for policy in versions:
        for row, options in enumerate(policy.probabilities or []):
            tops[row].append(round(max(options), 3))
            texts[row].append(options_of(row, options))
    figure.add_heatmap(
        x=[policy.version for policy in versions],
        y=names,
        z=tops,
        text=texts,
        zmin=0,
        zmax=1,
        colorscale="Cividis",
        hovertemplate="%{y}, update %{x}<br>%{text}<extra></extra>",
        colorbar={"title": {"text": "likeliest", "side": "right"}, "thickness": 12},
    )
    figure.update_yaxes(autorange="reversed", automargin=True, tickfont={"size": 10})
    figure.update_layout(height=max(320, 17 * rows + 90))
    return figure


def costs(findings: Findings) -> go.Figure:
    """AP over GFLOPs, and the front that nothing beats in both."""
    figure = _figure("GFLOPs of the pyramid, one image", "AP")
    figure.add_scatter(
        **_costs(findings, _thinned(findings.ranked)),
        mode="markers",
        name="graph",
        marker={"color": BLUE, "size": 5, "opacity": 0.55},
    )
    figure.add_scatter(
        **_costs(findings, findings.front),
        mode="lines+markers",
        name="not beaten in both",
        line={"color": ORANGE, "shape": "hv"},
        marker={"symbol": "diamond", "size": 8},
    )
    of_front = [findings.evaluations[episode.evaluation_id].ap or 0.0 for episode in findings.front]
    shown = _most_of([findings.evaluations[episode.evaluation_id].ap or 0.0 for episode in findings.ranked])
    figure.update_yaxes(range=shown and [min([shown[0], *of_front]), shown[1]])
    prices = {evaluation.cost.gflops for evaluation in findings.evaluations.values()}
    if len(prices) == 1:  # Plotly would show half a GFLOP on either side, below nothing too
        figure.update_xaxes(range=[0, 2 * max(prices)])
    return figure


def window(findings: Findings) -> int:
    """Episodes of a running mean: fewer in short searches."""
    return max(FEWEST, min(RECENT, len(findings.rewarded) // 5))


def running_mean(findings: Findings) -> tuple[list[int], list[float]]:
    """Numbers of episodes, and the mean reward of the last ones that have one. Thinned."""
    values = [episode.reward for episode in findings.rewarded if episode.reward is not None]
    numbers = [episode.number for episode in findings.rewarded]
    count = window(findings)
    places = range(count - 1, len(values), -(-len(values) // MOST_DOTS) or 1)
    means = [statistics.fmean(values[place + 1 - count : place + 1]) for place in places]
    return [numbers[place] for place in places], means


def best_so_far(findings: Findings) -> tuple[list[int], list[float]]:
    """The episodes that were better than all before, the last one, and the highest reward until then."""
    numbers: list[int] = []
    highest: list[float] = []
    for episode in findings.rewarded:
        if episode.reward is not None and (not highest or episode.reward > highest[-1]):
            numbers.append(episode.number)
            highest.append(episode.reward)
    if numbers:
        numbers.append(findings.rewarded[-1].number)
        highest.append(highest[-1])
    return numbers, highest


def decision_name(place: int) -> str:
    cell, part = divmod(place, len(CELL_DECISIONS))
    return f"#{cell} " + ("input a", "input b", "level", "op")[part]


def options_of(place: int, options: Sequence[float]) -> str:
    """The likeliest three, by name."""
    kind = CELL_DECISIONS[place % len(CELL_DECISIONS)]
    levels = [f"P{level}" for level in LEVELS]
    names: dict[str, list[str]] = {
        "input": levels + [f"#{cell}" for cell in range(len(options))],
        "level": levels,
        "op": [*OPS],
    }
    best = sorted(range(len(options)), key=lambda option: -options[option])[:3]
    return ", ".join(f"{names[kind][option]} {options[option]:.2f}" for option in best)


def _name(findings: Findings) -> str:
    """Plotly takes names for markup."""
    return html.escape(findings.study.name, quote=False)


def _figure(x: str, y: str) -> go.Figure:
    """Grounds and letters are the page's, so that they follow its theme."""
    layout: dict[str, Any] = {
        "xaxis": {"title": {"text": x}, "gridcolor": "rgba(138,143,152,.25)", "zeroline": False},
        "yaxis": {"title": {"text": y}, "gridcolor": "rgba(138,143,152,.25)", "zeroline": False},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": GREY},
        "margin": {"l": 60, "r": 16, "t": 12, "b": 48},
        "height": 400,
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        "hovermode": "closest",
    }
    return go.Figure(layout=go.Layout(template="none", **layout))


def _by_update(y: str, count: int) -> go.Figure:
    """A chart over `count` versions of the policy: no halves of an update."""
    figure = _figure("update of the policy", y)
    if count <= FEW:
        figure.update_xaxes(dtick=1)
    return figure


def _dots(episodes: Sequence[Episode]) -> dict[str, Any]:
    return {
        "x": [episode.number for episode in episodes],
        "y": [episode.reward for episode in episodes],
        "mode": "markers",
        "hovertemplate": "episode %{x}: %{y:.4f}",
    }


def _line(x: Sequence[float], y: Sequence[float | None]) -> dict[str, Any]:
    rounded = [None if value is None else round(value, 5) for value in y]
    return {"x": list(x), "y": rounded, "mode": "lines" if len(x) > 1 else "markers"}


def _costs(findings: Findings, episodes: Sequence[Episode]) -> dict[str, Any]:
    of = [findings.evaluations[episode.evaluation_id] for episode in episodes]
    return {
        "x": [evaluation.cost.gflops for evaluation in of],
        "y": [evaluation.ap for evaluation in of],
        "text": [f"episode {episode.number}" for episode in episodes],
        "hovertemplate": "%{text}: AP %{y:.4f}, %{x:.4g} GFLOPs",
    }


def _thinned(episodes: Sequence[Episode]) -> list[Episode]:
    """At most MOST_DOTS of them, evenly."""
    return list(episodes[:: -(-len(episodes) // MOST_DOTS) or 1])


def _most_of(values: Sequence[float]) -> list[float] | None:
    """A range for the axis in which a few very low rewards do not press all others to its upper edge."""
    if len(values) < RECENT:
        return None
    low, high = statistics.quantiles(values, n=20)[0], max(values)
    margin = 0.08 * (high - low) or 0.01
    return [low - margin, high + margin]
