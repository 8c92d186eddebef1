"""The search's own sections of a configuration. Every key says what it is (docs/configuration.md is made of it)."""

from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from detector.config import DetectorConfig, DetectorSections, OptimizationConfig, Section

PROXY_VERSION = 4  # raise it when trained weights or rewards change: caches and studies are known by it


class SearchConfig(Section):
    """Who proposes, how it learns, and what graphs may cost (nas/budget.py)."""

    algorithm: Literal["reinforce", "random", "evolution"] = "reinforce"
    """Who proposes; `random` is the first policy, never updated, and `evolution` regularised evolution (Real et al.
    2019, arXiv:1802.01548)."""
    prior: str = "nas-fpn"
    """Where the search starts: `nas-fpn`, `fpn`, a best.json, or `none`."""
    batch: PositiveInt = 10
    """Episodes an update."""
    lag: NonNegativeInt = 1
    """Updates that a proposal may be behind, so that workers never wait for a batch to end."""
    prior_distance: PositiveFloat = 3.0
    """Decisions in which first samples differ from the prior, on average."""
    hidden: PositiveInt = 64
    """Width of the policy's LSTM."""
    learning_rate: PositiveFloat = 7e-3
    """Of the policy (Adam)."""
    entropy_weight: NonNegativeFloat = 0.04
    """Of the bonus for staying open, a decision, in units of the rewards' spread."""
    baseline_decay: PositiveFloat = Field(default=0.7, lt=1)
    """Of the moving mean of rewards over batches."""
    model_steps: NonNegativeInt = 8
    """Steps of the policy after each update on rewards that a model expects; 0: no model."""
    model_samples: PositiveInt = 16
    """Graphs in such a step."""
    population: PositiveInt = 50
    """Of `evolution`."""
    tournament: PositiveInt = 10
    """Of `evolution`."""
    rung_steps: PositiveInt | None = None
    """Steps of a first training, after which the worse half of a batch is pruned; none when absent."""
    max_gflops: PositiveFloat | None = None
    """Billions of multiply-adds of the pyramid at the final test size; a graph above is drawn again, and fails as
    `invalid` after a hundred draws."""
    max_params: PositiveInt | None = None
    """Of the pyramid, the same for all graphs of a search: a search for larger ones is refused."""
    target_gflops: PositiveFloat | None = None
    """Prices cost into rewards: AP * (GFLOPs / target) ** -0.07 (Tan et al. 2019, arXiv:1807.11626)."""


class TrialConfig(OptimizationConfig):
    """Training of one graph."""

    steps: NonNegativeInt = 90_000
    """Updates; 0: the pool's weights are judged as they are (`frozen` only)."""


class ProxyConfig(Section):
    """How a graph is judged: what is trained, on what, for how long."""

    protocol: Literal["frozen", "full", "tabular"] = "frozen"
    """`frozen`: backbone and FPN are trained once on the pretrain part and their maps kept; a trial starts from the
    pool of cell weights and trains pyramid and heads, if it trains anything. `full`: a trial trains a whole detector.
    `tabular`: nothing is trained, rewards come from the tabular benchmark (nas/tabular.py)."""
    canvas_hw: tuple[PositiveInt, PositiveInt] = (64, 64)
    """Height and width, in pixels, that images are shrunk into."""
    parts: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (0.5, 0.4, 0.1)
    """Shares of the training split: pretrain, trial, reward."""
    flip: bool = True
    """Mirror training images at random."""
    seed: NonNegativeInt = 0
    """Of the preparation; trials take the study's."""
    threads: PositiveInt = 1
    """Of a trial on the CPU: part of the result, since sums depend on it."""
    preparation_threads: PositiveInt = 2
    """Of the preparation on the CPU."""
    cache_limit_gb: PositiveFloat = 8.0
    """Kept maps may take so much; more is refused before anything is made."""
    detector: DetectorConfig | None = None
    """The proxy's own detector; the final one when absent."""
    pretrain: OptimizationConfig = OptimizationConfig()
    """Of backbone and FPN (`frozen`)."""
    pool: OptimizationConfig = OptimizationConfig()
    """Of the weights that trials start from (`frozen`)."""
    trial: TrialConfig = TrialConfig()
    """Of one graph."""
    confirm_steps: PositiveInt | None = None
    """Updates of the runs that confirm the best graphs; as many as trials have when absent."""
    norm_batches: NonNegativeInt = 0
    """Batches of 50 images on which the pyramid's norms are estimated once a `frozen` trial ends; 0: as trained."""

    @model_validator(mode="after")
    def _parts_are_shares(self) -> "ProxyConfig":
        if abs(sum(self.parts) - 1) > 1e-6:
            raise ValueError(f"parts must add up to 1, these add up to {sum(self.parts):g}")
        return self

    @model_validator(mode="after")
    def _trials_measure_something(self) -> "ProxyConfig":
        if self.trial.steps == 0 and self.protocol == "full":
            raise ValueError("trial.steps must be at least 1 with protocol full")
        if self.confirm_steps is not None and self.protocol == "tabular":
            raise ValueError("confirm_steps must be left out with protocol tabular: it knows trials only")
        if self.trial.steps == 0 and self.norm_batches == 0:
            raise ValueError("trial.steps 0 needs norm_batches: nothing else would tell the norms about a graph")
        return self


class Config(DetectorSections):
    """A whole configuration: data, detector and training are the detector's; search and proxy the search's."""

    search: SearchConfig = SearchConfig()
    """Who proposes."""
    proxy: ProxyConfig = ProxyConfig()
    """How a graph is judged."""

    @property
    def proxy_detector(self) -> DetectorConfig:
        return self.proxy.detector or self.detector
