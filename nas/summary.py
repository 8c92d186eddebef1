"""What a search has found, in words: for people who will not read a table."""

from detector.architecture import MergeCell
from nas.findings import Findings
from nas.results import Verdict
from nas.store import Episode

SURE, LIKELY = 0.95, 0.8
LEARNED_ERRORS = 3.0  # standard errors from which on a difference of means is more than luck


def found(findings: Findings) -> list[str]:
    """What was done, and what came of it."""
    lines = [_done(findings)]
    if not findings.ranked:
        return [*lines, "None of them has a reward yet."]
    best = findings.best[0]
    verdict = findings.verdicts.get(best.architecture_hash)
    if findings.prior is not None and best.architecture_hash == findings.prior.architecture_hash:
        lines.append(f"None was found that is better than the pyramid that it started from ({_ap(best, verdict)}).")
    else:
        lines.append(
            f"The best one is that of episode {best.number}: {_ap(best, verdict)}{_against(findings, verdict)}."
        )
        lines += _differences(findings, best)
    return lines


def trust(findings: Findings) -> list[str]:
    """How sure that is, and what it does not say."""
    if not findings.ranked:
        return []
    return [_certainty(findings), *_learned(findings), *_failures(findings), PROXY]


def following(findings: Findings, flags: str, config: str = "") -> list[tuple[str, str]]:
    """Commands to go on with, and what each does. flags: how they find the study; config: what nas-search needs to have
    its configuration and data again.
    """
    ranked = findings.ranked
    steps = []
    data = " --data DIR" if findings.study.config["data"]["source"] == "coco" else ""
    if findings.settled < findings.target:
        steps.append((f"nas-search{config} --episodes {findings.target}{flags}", "goes on with this search"))
    elif findings.algorithm != "random":
        steps.append(
            (
                f"nas-search{config} --episodes {findings.target} --algorithm random --study random{_database(flags)}",
                "searches without learning: what a search must beat",
            )
        )
    if ranked:
        steps.append((f"nas-export --best{flags}", "writes the best pyramid to best.json"))
        steps.append((f"train-final --arch best.json{data} --dry-run", "says what the final training would take"))
        steps.append((f"train-final --arch best.json{data}", "trains the whole detector with it"))
    return steps


def _database(flags: str) -> str:
    """Without the study."""
    return flags.partition(" --study")[0]


PROXY = (
    "Rewards are the average precision (AP, from 0 to 1) of a shortened training on a part of the training images. "
    "They tell bad pyramids from good ones more surely than the best from each other; how a pyramid does in the end, "
    "only a final training shows."
)


def _done(findings: Findings) -> str:
    start = {None: "the pyramid that it was given", "nas-fpn": "the published NAS-FPN", "fpn": "the plain FPN"}
    came_from = "nothing" if findings.prior_graph is None else start[findings.prior_name]
    settled, target = findings.settled, max(findings.target, len(findings.episodes))
    many = f"{settled:,} of {target:,}" if settled < target else f"{settled:,}"
    return (
        f"The search tried {many} pyramids, {len(findings.ranked):,} of them different ones that could be judged, "
        f"starting from {came_from}."
    )


def _ap(episode: Episode, verdict: Verdict | None) -> str:
    if verdict is None:
        return f"a reward of {episode.reward:.4f} in one run"
    return f"an AP of {verdict.mean:.4f}, the mean of {verdict.runs} runs with new seeds"


def _against(findings: Findings, verdict: Verdict | None) -> str:
    prior = findings.prior
    if prior is None:
        return ""
    confirmed = findings.verdicts.get(prior.architecture_hash)
    if verdict is not None and confirmed is not None:
        return f"; the one that the search started from has {confirmed.mean:.4f}"
    return f"; the one that the search started from had {prior.reward:.4f}"


def _differences(findings: Findings, best: Episode) -> list[str]:
    prior = findings.prior_graph
    if prior is None:
        return []
    ours = findings.graphs[best.architecture_hash].aligned_with(prior).cells
    changed = sum(_key(a) != _key(b) for a, b in zip(ours, prior.cells, strict=False))
    return [f"It differs from that one in {changed} of its {len(ours)} merging cells."]


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
    if prior is None or verdict.beats_prior is None:
        return "It was judged anew with seeds that the search had not used, so that luck plays no part in its figure."
    return f"{_sure(verdict.beats_prior)} (probability {verdict.beats_prior:.2f}, from runs with new seeds)."


def _sure(probability: float) -> str:
    if probability >= SURE:
        return "It is better than the pyramid that the search started from, as far as short trainings tell"
    if probability >= LIKELY:
        return "It is probably better than the pyramid that the search started from, which is not sure"
    return "It was not shown to be better than the pyramid that the search started from"


def _learned(findings: Findings) -> list[str]:
    learned = findings.learned
    if learned is None or findings.algorithm == "random":
        return []
    gain = learned.last - learned.first
    means = f"mean reward of the first {learned.episodes} and the last: {learned.first:.4f}, {learned.last:.4f}"
    if gain > LEARNED_ERRORS * learned.error:
        return [f"The search has learned: what it proposes has become better ({means})."]
    if gain < -LEARNED_ERRORS * learned.error:
        return [f"What the search proposes has become worse ({means}): something is wrong with its configuration."]
    return [f"That the search has learned anything cannot be seen ({means})."]


def _failures(findings: Findings) -> list[str]:
    failed = sum(count for _, count, _ in findings.causes)
    if not failed:
        return []
    causes = ", ".join(f"{count} {cause}" for cause, count, _ in findings.causes)
    return [f"{failed} of {len(findings.episodes)} episodes failed ({causes}); they count neither for nor against."]
