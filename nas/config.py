"""The search's own sections of a configuration."""

from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from detector.config import DetectorConfig, DetectorSections, OptimizationConfig, Section


class SearchConfig(Section):
    """Who proposes, how it learns, and what graphs may cost (nas/budget.py)."""

    algorithm: Literal["reinforce", "random", "evolution"] = "reinforce"
    prior: str = "nas-fpn"  # a known graph's name, a best.json, or none
    batch: PositiveInt = 10  # episodes per update
    lag: NonNegativeInt = 1  # updates that a proposal may be behind, so that workers never wait for a batch to end
    prior_distance: PositiveFloat = 3.0  # decisions in which first samples differ from the prior, on average
    hidden: PositiveInt = 64
    learning_rate: PositiveFloat = 7e-3
    entropy_weight: NonNegativeFloat = 0.04  # per decision, in units of the rewards' spread
    baseline_decay: PositiveFloat = Field(default=0.7, lt=1)  # of the moving mean over batches
    model_steps: NonNegativeInt = 8  # of the policy after each update, on rewards that a model expects; 0: no model
    model_samples: PositiveInt = 16  # graphs a step
    population: PositiveInt = 50  # of evolution
    tournament: PositiveInt = 10
    rung_steps: PositiveInt | None = None  # of a first training, after which the worse half of a batch is pruned
    max_gflops: PositiveFloat | None = None  # billions of multiply-adds of the pyramid, at the final test size
    max_params: PositiveInt | None = None  # of the pyramid
    target_gflops: PositiveFloat | None = None  # rewards are AP * (gflops / target) ** -0.07


class TrialConfig(OptimizationConfig):
    """Training of one graph."""

    steps: NonNegativeInt = 90_000  # 0: the pool's weights are judged as they are (frozen only)


class ProxyConfig(Section):
    """How a graph is judged: what is trained, on what, for how long.

    frozen: backbone and FPN are trained once on the pretrain part and their maps kept; a trial starts from the pool
    of cell weights and trains pyramid and heads, if it trains anything. full: a trial trains a whole detector. tabular:
    nothing is trained, rewards come from the tabular benchmark (nas/tabular.py).
    """

    protocol: Literal["frozen", "full", "tabular"] = "frozen"
    canvas_hw: tuple[PositiveInt, PositiveInt] = (64, 64)  # images are shrunk into it
    parts: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (0.5, 0.4, 0.1)  # pretrain, trial, reward
    flip: bool = True
    seed: NonNegativeInt = 0  # of the preparation; trials take the study's
    threads: PositiveInt = 1  # of a trial on the CPU: part of the result, since sums depend on it
    preparation_threads: PositiveInt = 2
    cache_limit_gb: PositiveFloat = 8.0
    detector: DetectorConfig | None = None  # the proxy's own detector; the final one's when absent
    pretrain: OptimizationConfig = OptimizationConfig()
    pool: OptimizationConfig = OptimizationConfig()
    trial: TrialConfig = TrialConfig()
    confirm_steps: PositiveInt | None = None  # of the runs that confirm the best graphs; as many as trials when absent
    norm_batches: NonNegativeInt = 0  # of 50 images, for the pyramid's norms once a frozen trial ends; 0: as trained

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
    proxy: ProxyConfig = ProxyConfig()

    @property
    def proxy_detector(self) -> DetectorConfig:
        return self.proxy.detector or self.detector
