"""What a search has found, in words: for people who will not read a table."""

from collections.abc import Sequence
from typing import NamedTuple

from detector.architecture import MergeCell
from nas.confirm import EPISODES_A_RUN, RUNS_A_CANDIDATE
from nas.fidelity import measured
from nas.findings import Findings
from nas.results import LEAST_PREPARATIONS, Verdict, is_of_one_preparation
from nas.store import Episode, State

SURE, LIKELY = 0.95, 0.8
RUNS = 12  # that are proposed to confirm a search: two graphs and the prior
ERRORS = 3.0  # standard errors from which on a difference of means is more than luck
START = "the pyramid that the search started from"


class Flags(NamedTuple):
    """What commands need, each with a space before it: to find the database, the study, and to have its configuration
    again.
    """

    database: str
    study: str
    config: str


def found(findings: Findings) -> list[str]:
    """What was done, and what came of it."""
    lines = [_done(findings)]
    if not findings.ranked:
        return [*lines, "None of them has a reward yet."]
    best = findings.best[0]
    verdict = findings.verdicts.get(best.architecture_hash)
    if findings.prior is not None and best.architecture_hash == findings.prior.architecture_hash:
        return [*lines, f"None was found that is better than {START} ({_reached(findings, best, verdict)})."]
    reached, against = _reached(findings, best, verdict), _against(findings, verdict)
    return [
        *lines,
        f"The best one is that of episode {best.number}: {reached}{against}.",
        *_differences(findings, best),
    ]


def trust(findings: Findings, baselines: Sequence[Findings] = ()) -> list[str]:
    """How sure that is, and what it does not say. baselines: searches without learning, whose rewards mean the same."""
    if not findings.ranked:
        return []
    compared = [_beside(findings, baseline) for baseline in baselines]
    return [_certainty(findings), *_learned(findings), *filter(None, compared), *_failures(findings), _proxy(findings)]


def following(findings: Findings, flags: Flags, *, has_baseline: bool = False) -> list[tuple[str, str]]:
    """Commands to go on with, and what each does."""
    steps = []
    here = flags.database + flags.study
    data = " --data DIR" if findings.study.config["data"]["source"] == "coco" else ""
    first = findings.episodes[0] if findings.episodes else None
    if first is not None and first.log_prob is None and first.state == State.FAILED:
        steps.append((f"nas-control retry 0{here}", f"tries {START} again, which failed: nothing goes on without it"))
    elif findings.settled < findings.target:
        steps.append((f"nas-search{flags.config} --episodes {findings.target}{here}", "goes on with this search"))
    elif findings.ranked and not findings.verdicts:
        command = f"nas-search{flags.config} --episodes {findings.target} --confirm {RUNS}{here}"
        steps.append((command, "judges the best again with new seeds: until then it may just be lucky"))
    elif _is_prior_best(findings):
        steps.append((f"nas-search{flags.config} --episodes {2 * findings.target}{here}", "searches on"))
    elif is_of_one_preparation(findings.study, findings.verdicts):
        runs = f" --confirm {RUNS_A_CANDIDATE}" if findings.target // EPISODES_A_RUN < RUNS_A_CANDIDATE else ""
        others = f"{runs} --confirm-preparations {LEAST_PREPARATIONS}"
        command = f"nas-search{flags.config} --episodes {findings.target}{others}{here}"
        what = "asks three other preparations of the proxy: what one holds for better by a little, another may not"
        steps.append((command, what))
    if findings.ranked:
        what = START if _is_prior_best(findings) else "the best pyramid"
        steps.append((f"nas-export --best{here}", f"writes {what} to best.json"))
        steps.append((f"train-final --arch best.json{data} --dry-run", "says what the final training would take"))
        steps.append((f"train-final --arch best.json{data}", "trains the whole detector with it"))
    if findings.settled >= findings.target and findings.algorithm != "random" and not has_baseline:
        command = f"nas-search{flags.config} --episodes {findings.target} --algorithm random --study random"
        steps.append((command + flags.database, "searches without learning: what a search must beat"))
    return steps


def _is_prior_best(findings: Findings) -> bool:
    """Whether nothing came before where the search started, once it was judged with new seeds."""
    prior = findings.prior
    return prior is not None and bool(findings.verdicts) and next(iter(findings.verdicts)) == prior.architecture_hash


def measure(findings: Findings) -> str:
    """What rewards are."""
    return "AP" if findings.study.config["search"]["target_gflops"] is None else "AP times a factor for its cost"


def _done(findings: Findings) -> str:
    starts = {None: "the pyramid that it was given", "nas-fpn": "the published NAS-FPN", "fpn": "the plain FPN"}
    came_from = "nothing" if findings.prior_graph is None else starts[findings.prior_name]
    settled, target = findings.settled, max(findings.target, len(findings.episodes))
    many = f"{settled:,} of {target:,}" if settled < target else f"{settled:,}"
    return (
        f"The search has proposed {many} pyramids, starting from {came_from}; {len(findings.ranked):,} different ones "
        "were judged."
    )


def _reached(findings: Findings, episode: Episode, verdict: Verdict | None) -> str:
    if verdict is None:
        return f"a reward ({measure(findings)}) of {episode.reward:.4f} in one run"
    mean = "from" if verdict.runs == 1 else "the mean of"
    return f"{measure(findings)} {verdict.mean:.4f}, {mean} {verdict.by}"


def _against(findings: Findings, verdict: Verdict | None) -> str:
    """Only what was measured in the same way is set beside it."""
    prior = findings.prior
    if prior is None:
        return ""
    confirmed = findings.verdicts.get(prior.architecture_hash)
    if verdict is not None and confirmed is not None:
        return f"; {START} has {confirmed.mean:.4f}"
    return "" if verdict is not None else f"; {START} had {prior.reward:.4f}"


def _differences(findings: Findings, best: Episode) -> list[str]:
    prior = findings.prior_graph
    if prior is None:
        return []
    ours = findings.graphs[best.architecture_hash].aligned_with(prior).cells
    changed = sum(_key(a) != _key(b) for a, b in zip(ours, prior.cells, strict=False))
    return [f"It differs from {START} in {changed} of its {len(ours)} merging cells."]


def _key(cell: MergeCell) -> tuple[object, ...]:
    return frozenset(cell.inputs), cell.level, cell.op


def _certainty(findings: Findings) -> str:
    best = findings.best[0]
    verdict, prior = findings.verdicts.get(best.architecture_hash), findings.prior
    if verdict is None:
        return (
            "Nothing is confirmed yet. The highest of many single rewards is mostly a lucky one: expect less from it, "
            "and do not compare it with anything."
        )
    if prior is not None and best.architecture_hash == prior.architecture_hash:
        return _prior_stays(findings, verdict)
    if prior is not None and verdict.beats_prior is None:
        return f"It is still to be judged beside {START}, by {_anew(verdict)}."
    if verdict.beats_prior is None:
        return (
            f"It is the best of {len(findings.verdicts)} that were judged anew, by {_anew(verdict)}: nearly what it is "
            "worth, and still a little flattered, as the best of several is."
        )
    return f"{_sure(verdict.beats_prior)} (probability {verdict.beats_prior:.2f}, from {verdict.by})."


def _anew(verdict: Verdict) -> str:
    """What judges a graph again."""
    return "other preparations of the proxy" if verdict.preparations else "runs with seeds that the search had not used"


def _prior_stays(findings: Findings, prior: Verdict) -> str:
    """When none of the found ones comes before it."""
    others = [v for v in findings.verdicts.values() if v.architecture_hash != prior.architecture_hash]
    judged = f"{len(findings.verdicts)} pyramids were judged anew, by {_anew(prior)}."
    best = max(others, key=lambda v: v.mean, default=None)
    if best is None or best.beats_prior is None:
        return judged
    return (
        f"{judged} The best found one has {best.mean:.4f} where the start has {prior.mean:.4f}: that it is better has "
        f"a probability of {best.beats_prior:.2f}."
    )


def _sure(probability: float) -> str:
    if probability >= SURE:
        return f"It is better than {START}, as far as the runs of a search tell"
    if probability >= LIKELY:
        return f"It is probably better than {START}, which is not sure"
    return f"It was not shown to be better than {START}"


def _learned(findings: Findings) -> list[str]:
    learned = findings.learned
    if learned is None or findings.algorithm == "random":
        return []
    gain = learned.last - learned.first
    means = (
        f"the different ones among the first {learned.episodes} have a mean reward of {learned.first:.4f}, the "
        f"{learned.different} among the last {learned.episodes} one of {learned.last:.4f}"
    )
    if gain > ERRORS * learned.error:
        return [f"The search has learned: what it proposes has become better ({means})."]
    if gain < -ERRORS * learned.error:
        return [f"What the search proposes has become worse ({means})."]
    return [f"That the search has learned anything cannot be seen ({means})."]


def _beside(findings: Findings, baseline: Findings) -> str | None:
    """Whether learning was worth anything, by what new seeds say of both winners."""
    ours, theirs = (next(iter(study.verdicts.values()), None) for study in (findings, baseline))
    if ours is None or theirs is None or ours.spread is None or theirs.spread is None:
        return None
    name = f"the search without learning ({baseline.study.name}, {baseline.settled:,} episodes)"
    if (ours.steps, ours.preparations) != (theirs.steps, theirs.preparations):
        return f"It cannot be set beside {name}: this winner was judged by {ours.by}, that one by {theirs.by}."
    error = (ours.spread**2 / ours.runs + theirs.spread**2 / theirs.runs) ** 0.5
    gain = ours.mean - theirs.mean
    figures = f"judged anew its winner has {theirs.mean:.4f}, this one {ours.mean:.4f}"
    if gain > ERRORS * error:
        return f"It has beaten {name}: {figures}."
    if gain < -ERRORS * error:
        return f"It was beaten by {name}: {figures}."
    return f"It has not beaten {name}: {figures}, a difference that luck explains (standard error {error:.4f})."


def _failures(findings: Findings) -> list[str]:
    failed = sum(count for _, count, _ in findings.causes)
    if not failed:
        return []
    causes = ", ".join(f"{count} {cause}" for cause, count, _ in findings.causes)
    return [f"{failed} of {len(findings.episodes)} episodes failed ({causes}); they count neither for nor against."]


def _proxy(findings: Findings) -> str:
    """What rewards say, and what they do not."""
    proxy = findings.study.config["proxy"]
    if proxy["protocol"] == "tabular":
        return "Rewards were looked up in the tabular benchmark: nothing was trained."
    fidelity = measured(findings.study)
    agree = f" Measured for this configuration: {fidelity}." if fidelity is not None else ""
    how = "with weights that all pyramids share" if proxy["trial"]["steps"] == 0 else "after a shortened training"
    return (
        f"Rewards ({measure(findings)}; average precision, from 0 to 1) say how a pyramid does {how}, on a part of the "
        "training images. They tell bad pyramids from good ones more surely than the best from each other; how one "
        f"does in the end, only a final training shows.{agree}"
    )
