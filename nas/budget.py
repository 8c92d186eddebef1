"""What the graphs of a search may cost, on the maps of the final detector."""

from dataclasses import dataclass, replace

from detector.architecture import LEVELS, Architecture, MergeCell
from detector.cost import Cost, cost_of
from detector.errors import UserError
from detector.levels import Size, level_sizes
from nas.config import Config
from nas.space import NasFpnSpace

TARGET_EXPONENT = -0.07  # MnasNet (Tan et al. 2018, arXiv:1807.11626), section 3.1: twice the cost for 5 % of reward


@dataclass(frozen=True)
class Budget:
    """Limits, beyond which no graph is trained, and a target, which prices cost into the reward.

    Graphs of one space differ in where their cells lie, so in GFLOPs, but all have the same number of parameters.

    Costs are those of the pyramid alone (all else is the same for every graph), for one image at the final test size.
    """

    image_hw: Size
    base_stride: int
    channels: int
    max_gflops: float | None = None
    max_params: int | None = None
    target_gflops: float | None = None

    @classmethod
    def of(cls, config: Config) -> "Budget":
        training, search, detector = config.training, config.search, config.detector
        limits = search.max_gflops, search.max_params, search.target_gflops
        return cls((training.short_side, training.long_side), detector.base_stride, detector.channels, *limits)

    @property
    def level_sizes(self) -> list[Size]:
        return level_sizes(self.image_hw, self.base_stride)

    def cost(self, architecture: Architecture) -> Cost:
        return cost_of(architecture, self.channels, self.level_sizes)

    def allows(self, architecture: Architecture) -> bool:
        return self.excess(architecture) is None

    def excess(self, architecture: Architecture) -> str | None:
        """What is exceeded, by how much; None for a graph within the limits."""
        cost = self.cost(architecture)
        if self.max_gflops is not None and cost.gflops > self.max_gflops:
            return f"{cost.gflops:.4g} GFLOPs, max_gflops is {self.max_gflops:g}"
        if self.max_params is not None and cost.params > self.max_params:
            return f"{cost.params} parameters, max_params is {self.max_params}"
        return None

    def check(self, space: NasFpnSpace, prior: Architecture | None) -> None:
        """Raises UserError if no graph of the space can keep it, or the prior does not, where the search starts."""
        top = LEVELS[-1]
        coarse = [MergeCell((0, 1), top, "sum")] * (space.num_cells - len(LEVELS))
        cheapest = replace(space.like, cells=(*coarse, *(MergeCell((0, 1), level, "sum") for level in LEVELS)))
        excess = self.excess(cheapest)
        if excess is not None:
            raise UserError(f"the cheapest graph of {space.num_cells} cells has {excess}; raise that")
        excess = self.excess(prior) if prior is not None else None
        if excess is not None:
            raise UserError(f"the prior has {excess}; raise that, or start elsewhere with --prior")

    def factor(self, architecture: Architecture) -> float:
        """What an AP is multiplied by to become a reward: (cost / target) ** -0.07, or 1 without a target."""
        if self.target_gflops is None:
            return 1.0
        return float((self.cost(architecture).gflops / self.target_gflops) ** TARGET_EXPONENT)
