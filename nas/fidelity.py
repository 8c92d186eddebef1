"""How far rewards agree with full training, where that was measured (experiments/fidelity.py)."""

import json
from typing import NamedTuple

from detector.config_files import load_config
from detector.presets import preset_folder
from nas.config import PROXY_VERSION, Config
from nas.store import Study

FILE = "proxy_fidelity.json"


class Fidelity(NamedTuple):
    """Of one configuration's rewards, one a graph, with the mean of full trainings from a trained backbone: Kendall's
    tau with a 90 % interval, the tau that a reference as noisy as this one leaves to a perfect proxy, how many pairs of
    graphs it tells apart, and the share of them that the rewards order in the same way, with a 90 % interval.
    """

    preset: str
    proxy_version: int
    graphs: int
    trainings: int  # of each graph
    tau: float
    low: float
    high: float
    ceiling: float
    pairs: int
    right: float
    right_low: float
    right_high: float

    @property
    def all_pairs(self) -> int:
        return self.graphs * (self.graphs - 1) // 2

    def __str__(self) -> str:
        return (
            f"Kendall's tau {self.tau:.2f} ({self.low:.2f} to {self.high:.2f}; 1 would be the same order, 0 none) on "
            f"{self.graphs} pyramids, {self.trainings} full trainings each from a trained backbone; so noisy a "
            f"reference leaves {self.ceiling:.2f} to a perfect proxy. Of the {self.pairs} pairs (of {self.all_pairs}) "
            f"that these trainings tell apart, at a level of 5 %, rewards order {self.right:.0%} rightly "
            f"({self.right_low:.0%} to {self.right_high:.0%})"
        )


def measured(study: Study) -> Fidelity | None:
    """Of a study whose data, detector and proxy are those that were measured; None of any other."""
    file = preset_folder() / FILE
    if not file.is_file():
        return None
    fidelity = Fidelity(**json.loads(file.read_text(encoding="utf-8")))
    config = load_config(fidelity.preset, Config).model_dump(mode="json")
    same = all(study.config[section] == config[section] for section in ("data", "detector", "proxy"))
    return fidelity if same and study.config["proxy version"] == fidelity.proxy_version == PROXY_VERSION else None
