"""What trials share, by name: folders of the cache, each known by all that decides what is in it.

Without PyTorch: a search that finds them there need not wait for it.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from detector.architecture import Architecture
from detector.cache import cache_folder
from detector.coco import CocoData
from detector.errors import UserError
from detector.levels import level_sizes
from detector.named_weights import named_weights
from nas.config import PROXY_VERSION, Config
from nas.space import space_around
from nas.tabular import check_space, load_tabular

# The detector is keyed apart.
NOT_OF_FEATURES = {"pool", "trial", "confirm_steps", "norm_batches", "threads", "cache_limit_gb", "detector"}


class Shared(NamedTuple):
    """Names of folders: of the detector and its cached maps, and of the pool of cell weights."""

    features: str
    pool: str


def shared_by_trials(config: Config, data: CocoData, prior: Architecture | None) -> Shared:
    """Of the frozen proxy. Keyed by data, detector and proxy settings, and the pool also by the space it was trained
    for; never by study. Raises UserError if the cache would be larger than proxy.cache_limit_gb.
    """
    proxy, detector = config.proxy, config.proxy_detector
    _check_size(config, data)
    identity = {
        "version": PROXY_VERSION,
        "data": data.hash,
        "detector": named_weights(detector).model_dump(mode="json"),
        "proxy": proxy.model_dump(mode="json", exclude=NOT_OF_FEATURES),
    }
    # The order of the prior's cells decides which neighbours the pool is trained with.
    graphs = {"pool": proxy.pool.model_dump(mode="json"), "prior": prior and prior.canonical().to_dict()}
    folder = f"proxy-{_digest(identity)}"
    return Shared(f"{folder}/features", f"{folder}/pool-{_digest(graphs)}")


def other_preparation(config: Config, number: int) -> Config:
    """As it is, but prepared with another seed: number is 1, 2, ..."""
    proxy = config.proxy.model_copy(update={"seed": config.proxy.seed + number})
    return config.model_copy(update={"proxy": proxy})


def delivered(config: Config, data: CocoData, prior: Architecture | None) -> Sequence[str]:
    """The folders that were trained, and so must be the same on all machines."""
    return shared_by_trials(config, data, prior) if config.proxy.protocol == "frozen" else ()


def is_prepared(config: Config, data: CocoData, prior: Architecture | None) -> bool:
    """Whether trials find all they share on this machine, and no mistake is left to be found. Raises UserError for
    one that has been.
    """
    if config.proxy.protocol == "tabular":
        check_space(space_around(prior).like)
        load_tabular()
        return True
    folders = delivered(config, data, prior)
    return bool(folders) and all((cache_folder() / name).is_dir() for name in folders)


def _digest(identity: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def _check_size(config: Config, data: CocoData) -> None:
    sizes = level_sizes(config.proxy.canvas_hw, config.proxy_detector.base_stride)
    positions = sum(height * width for height, width in sizes)
    gigabytes = len(data) * sum(config.proxy.parts[1:]) * positions * config.proxy_detector.channels * 2 / 1e9
    if gigabytes > config.proxy.cache_limit_gb:
        raise UserError(
            f"proxy.protocol frozen would cache {gigabytes:.1f} GB of features, over proxy.cache_limit_gb "
            f"{config.proxy.cache_limit_gb:g}; raise it, shrink proxy.canvas_hw, or set proxy.protocol full"
        )
