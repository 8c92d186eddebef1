"""Who proposes, as the configuration says: REINFORCE, or what it is compared with."""

from functools import lru_cache, partial

import numpy as np
from numpy.typing import NDArray

from controller.controller import Controller
from controller.decisions import Decisions
from controller.dyna import Dyna
from controller.evolution import Evolution
from controller.proposer import Proposer
from controller.reinforce import Reinforce, Untrained
from detector.architecture import Architecture
from nas.budget import Budget
from nas.config import SearchConfig
from nas.graph_features import graph_features
from nas.space import NasFpnSpace

DESCRIBED = 10_000  # features of graphs that are kept: neighbours of the best come again


def make_controller(
    search: SearchConfig, space: NasFpnSpace, prior: Architecture | None, seed: int, budget: Budget | None = None
) -> Controller:
    """The controller that a configuration describes. Graphs that the budget does not allow are drawn again."""
    decisions = space.decisions(prior) if prior is not None else None
    proposer: Proposer
    if search.algorithm == "evolution":
        proposer = Evolution(space, population=search.population, tournament=search.tournament, prior=decisions)
    else:
        learner = (Untrained if search.algorithm == "random" else Reinforce)(
            space,
            hidden=search.hidden,
            learning_rate=search.learning_rate,
            entropy_weight=search.entropy_weight,
            baseline_decay=search.baseline_decay,
            prior=decisions,
            prior_distance=search.prior_distance,
            seed=seed,
        )
        proposer = learner
        if search.algorithm == "reinforce" and search.model_steps:
            describe = lru_cache(DESCRIBED)(partial(_described, space, budget))
            proposer = Dyna(learner, describe, steps=search.model_steps, samples=search.model_samples, seed=seed)
    accepts = partial(_is_affordable, space, budget)
    return Controller(proposer, batch=search.batch, lag=search.lag, seed=seed, accepts=accepts)


def _described(space: NasFpnSpace, budget: Budget | None, decisions: Decisions) -> NDArray[np.float64] | None:
    """For the model of rewards: nothing of graphs over the budget, or the policy would be drawn to them."""
    return graph_features(space.architecture(decisions)) if _is_affordable(space, budget, decisions) else None


def _is_affordable(space: NasFpnSpace, budget: Budget | None, decisions: Decisions) -> bool:
    return budget is None or budget.allows(space.architecture(decisions))
