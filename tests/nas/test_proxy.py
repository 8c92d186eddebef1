import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from detector.architecture import PRIORS, Architecture, MergeCell
from detector.coco import load_split
from detector.config_files import load_config
from detector.errors import UserError
from nas.config import Config
from nas.pool import CellPool, draw_graph, estimate_statistics
from nas.preparation import FeatureCache, divide, features_folder, load_heads, prepare
from nas.prepared import delivered, is_prepared, shared_by_trials
from nas.proxy import FrozenProxy, load_proxy, prepare_proxy, trial_of
from nas.space import space_around

CONFIG = load_config("smoke", Config)
PRIOR = PRIORS["nas-fpn"]
CPU = torch.device("cpu")


def quiet(what: str, step: int, steps: int) -> None:
    assert 0 < step <= steps, what


@pytest.fixture(scope="module")
def proxy() -> FrozenProxy:
    loaded = load_proxy(CONFIG, load_split(CONFIG.data, None, "train"), PRIOR, CPU, quiet)
    assert isinstance(loaded, FrozenProxy)
    return loaded


def test_parts_are_disjoint_cover_everything_and_follow_ids_alone() -> None:
    data = load_split(CONFIG.data, None, "train")
    parts = divide(data, CONFIG.proxy.parts)
    ids = [set(part.image_ids.tolist()) for part in parts.values()]
    assert sum(map(len, ids)) == len(set().union(*ids)) == len(data)
    half = divide(data.subset(np.arange(0, len(data), 2)), CONFIG.proxy.parts)
    assert all(set(half[name].image_ids.tolist()) <= set(parts[name].image_ids.tolist()) for name in parts)


def test_parts_without_objects_are_refused(tiny_coco: Path) -> None:
    config = load_config("bccd", Config)
    with pytest.raises(UserError, match=r"part .* without objects; add images or set proxy\.parts"):
        divide(load_split(config.data, tiny_coco, "train"), (0.01, 0.01, 0.98))


def test_a_trial_resets_every_random_state(proxy: FrozenProxy) -> None:
    first = proxy.evaluate(PRIOR, 0)
    proxy.evaluate(PRIORS["nas-fpn"], 1)
    torch.rand(7)
    assert proxy.evaluate(PRIOR, 0) == first


def test_isomorphic_graphs_get_the_same_reward(proxy: FrozenProxy) -> None:
    from tests.detector.test_architecture import relabelled

    outputs = [((0, 1), 3), ((1, 2), 4), ((2, 3), 5), ((3, 4), 6), ((4, 0), 7)]
    graph = Architecture(tuple(MergeCell(inputs, level, "sum") for inputs, level in outputs))
    other = relabelled(graph, (4, 2, 0, 3, 1), swap=True)
    fpn_pool = load_proxy(CONFIG, load_split(CONFIG.data, None, "train"), PRIORS["fpn"], CPU, quiet)
    assert isinstance(fpn_pool, FrozenProxy)
    ours, theirs = (fpn_pool.detections(fpn_pool.trained(written, 0)) for written in (graph, other))
    assert sum(len(found.scores) for found in ours) > 0
    for of_image, again in zip(ours, theirs, strict=True):
        assert all(map(torch.equal, of_image, again))


def test_cached_maps_are_the_detector_s_own(proxy: FrozenProxy) -> None:
    from detector.cascade_rcnn import CascadeRcnn
    from nas.preparation import canvas_loader

    model = CascadeRcnn(CONFIG.proxy_detector, None, 8, batched=True)
    model.load_state_dict(torch.load(features_folder(proxy.folder) / "detector.pt", weights_only=True))
    model.eval()
    part = divide(load_split(CONFIG.data, None, "train"), CONFIG.proxy.parts)["reward"]
    batch = next(canvas_loader(part, CONFIG.proxy, CONFIG.proxy_detector).ordered(4))
    with torch.no_grad():
        wanted = model.features(batch.to(CPU).images)
    cached = FeatureCache(features_folder(proxy.folder), "reward", CPU).batch(torch.arange(4))
    for ours, theirs in zip(cached.features, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-3, atol=2e-3)  # half precision
    assert cached.image_hw.equal(batch.image_hw)
    for ours, theirs in zip(cached.targets.boxes, batch.targets.boxes, strict=True):
        assert ours[: len(theirs)].equal(theirs)


def test_shuffled_batches_cover_each_image_once_an_epoch(proxy: FrozenProxy) -> None:
    cache = proxy.trial_cache
    maps = [batch.features[0].flatten(1).sum(1) for batch in cache.shuffled(len(cache) // 3, 3, seed=0)]
    whole = cache.batch(torch.arange(len(cache))).features[0].flatten(1).sum(1)
    seen = torch.cat(maps).tolist()
    assert len(set(whole.tolist())) == len(cache)
    assert len(seen) > len(cache) - 3
    assert len(set(seen)) == len(seen)
    assert set(seen) <= set(whole.tolist())


def test_a_trial_starts_from_the_pool_s_cells_and_heads(proxy: FrozenProxy) -> None:
    heads = load_heads(proxy.folder, CONFIG, 8, PRIOR, CPU)
    state = torch.load(proxy.folder / "pool.pt", weights_only=True)
    for cell, module in zip(PRIOR.cells, heads.pyramid.cells, strict=True):
        assert module.conv.weight.equal(state["pool"][f"cells.repeat0_p{cell.level}.conv.weight"])
    assert len({id(module) for module in heads.pyramid.cells}) == 7  # each its own
    assert heads.cascade.heads[0].reduce.weight.equal(state["heads"]["cascade.heads.0.reduce.weight"])


def test_a_trial_of_no_steps_changes_nothing_but_the_norms_statistics(proxy: FrozenProxy) -> None:
    trial = CONFIG.proxy.trial.model_copy(update={"steps": 0})
    update = {"trial": trial, "norm_batches": 1}
    config = CONFIG.model_copy(update={"proxy": CONFIG.proxy.model_copy(update=update)})
    untrained = load_proxy(config, load_split(CONFIG.data, None, "train"), PRIOR, CPU, quiet)
    assert isinstance(untrained, FrozenProxy)
    graph = PRIOR.canonical()
    before = load_heads(proxy.folder, CONFIG, 8, graph, CPU).state_dict()
    after = untrained.trained(graph, 0).state_dict()
    statistics = {name for name in before if "running_" in name or "num_batches" in name}
    changed = {name for name, value in after.items() if not value.equal(before[name])}
    assert changed == {name for name in statistics if name.startswith("pyramid.")}
    assert changed


@pytest.mark.parametrize(
    ("steps", "warmup_steps", "asked", "expected"),
    [(10, 4, 5, 2), (10, 4, 20, 8), (10, 4, None, 4), (0, 4, 20, 4), (0, 4, 3, 2), (10, 0, 20, 0)],
)
def test_a_trial_s_schedule_is_drawn_to_the_steps_asked_for(
    steps: int, warmup_steps: int, asked: int | None, expected: int
) -> None:
    trial = CONFIG.proxy.trial.model_copy(update={"steps": steps, "warmup_steps": warmup_steps})
    config = CONFIG.model_copy(update={"proxy": CONFIG.proxy.model_copy(update={"trial": trial})})
    drawn = trial_of(config, asked)
    assert (drawn.steps, drawn.warmup_steps) == (steps if asked is None else asked, expected)
    assert drawn.learning_rate == trial.learning_rate


def test_a_pool_s_pyramids_share_its_weights_or_copy_them() -> None:
    pool = CellPool(2, 4, "bn")
    assert len(pool.cells) == 10
    stacked = dataclasses.replace(PRIOR, repeats=2)
    shared, copied = pool.shared(stacked), pool.copied(stacked)
    levels = [cell.level for cell in PRIOR.cells] * 2
    for index, (one, other, level) in enumerate(zip(shared.cells, copied.cells, levels, strict=True)):
        own = pool.cells[f"repeat{index // 7}_p{level}"]
        assert one.conv.weight is own.conv.weight
        assert other.conv.weight is not own.conv.weight
        assert other.conv.weight.equal(own.conv.weight)
    features = [torch.rand(2, 4, 2**n, 2**n) for n in (4, 3, 2, 1, 0)]
    shared.eval()
    copied.eval()
    for one, other in zip(shared(features), copied(features), strict=True):
        assert one.equal(other)


def test_pool_graphs_are_canonical_and_half_are_near_the_prior() -> None:
    space, stream = space_around(PRIOR), np.random.default_rng(0)
    graphs = [draw_graph(space, PRIOR, stream) for _ in range(300)]
    assert all(graph == graph.canonical() for graph in graphs)
    wanted = set(PRIOR.canonical().cells)
    near = sum(len(wanted & set(graph.cells)) >= 2 for graph in graphs)
    assert 75 < near < 220


def test_preparation_is_shared_and_keyed_by_what_matters(proxy: FrozenProxy) -> None:
    data = load_split(CONFIG.data, None, "train")

    def folder(config: Config, prior=PRIOR) -> Path:
        return prepare(config, data, prior, CPU, quiet)

    longer = {"trial": CONFIG.proxy.trial.model_copy(update={"steps": 5}), "confirm_steps": 9, "norm_batches": 2}
    assert folder(CONFIG.model_copy(update={"proxy": CONFIG.proxy.model_copy(update=longer)})) == proxy.folder
    other_prior = folder(CONFIG, PRIORS["fpn"])
    assert other_prior != proxy.folder
    assert other_prior.parent == proxy.folder.parent
    seeded = folder(CONFIG.model_copy(update={"proxy": CONFIG.proxy.model_copy(update={"seed": 1})}))
    assert seeded.parent != proxy.folder.parent


def test_what_is_prepared_is_known_without_building_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = load_split(CONFIG.data, None, "train")
    monkeypatch.setenv("NAS_CACHE", str(tmp_path))
    assert not is_prepared(CONFIG, data, PRIOR)
    folder = prepare(CONFIG, data, PRIOR, CPU, quiet)
    assert is_prepared(CONFIG, data, PRIOR)
    shared = shared_by_trials(CONFIG, data, PRIOR)
    assert (features_folder(folder), folder) == (tmp_path / shared.features, tmp_path / shared.pool)
    assert not is_prepared(CONFIG, data, PRIORS["fpn"])  # another pool
    full = CONFIG.model_copy(update={"proxy": CONFIG.proxy.model_copy(update={"protocol": "full"})})
    assert not is_prepared(full, data, PRIOR)  # its mistakes are found when it is built
    assert delivered(full, data, PRIOR) == ()


def test_a_cache_over_the_limit_is_refused_with_its_size() -> None:
    proxy = CONFIG.proxy.model_copy(update={"cache_limit_gb": 1e-4})
    config = CONFIG.model_copy(update={"proxy": proxy})
    data = load_split(CONFIG.data, None, "train")
    with pytest.raises(UserError, match=r"would cache 0\.0 GB .*over proxy.cache_limit_gb 0.0001"):
        is_prepared(config, data, PRIOR)
    with pytest.raises(UserError, match="would cache"):
        prepare_proxy(config, data, PRIOR, CPU, quiet)


def test_full_protocol_trains_a_whole_detector() -> None:
    full = CONFIG.model_copy(update={"proxy": CONFIG.proxy.model_copy(update={"protocol": "full"})})
    data = load_split(CONFIG.data, None, "train")
    prepare_proxy(full, data, PRIOR, CPU, quiet)
    proxy = load_proxy(full, data, PRIOR, CPU, quiet)
    first = proxy.evaluate(PRIOR, 0)
    assert 0 <= first <= 1
    assert proxy.evaluate(PRIOR, 0) == first


def test_full_protocol_finds_mistakes_before_the_first_trial(tmp_path: Path) -> None:
    backbone = CONFIG.detector.backbone.model_copy(update={"weights": str(tmp_path / "no.pt")})
    detector = CONFIG.detector.model_copy(update={"backbone": backbone})
    full = CONFIG.model_copy(
        update={"detector": detector, "proxy": CONFIG.proxy.model_copy(update={"protocol": "full"})}
    )
    with pytest.raises(UserError, match=r"no\.pt cannot be loaded"):
        prepare_proxy(full, load_split(CONFIG.data, None, "train"), PRIOR, CPU, quiet)


def test_norms_estimated_anew_hold_the_mean_over_the_batches(proxy: FrozenProxy) -> None:
    heads = proxy.trained(PRIOR, 0)
    before = {name: value.clone() for name, value in heads.state_dict().items()}
    estimate_statistics(heads.pyramid, proxy.trial_cache.shuffled(16, 2, 0))
    changed = {name for name, value in heads.state_dict().items() if not torch.equal(value, before[name])}
    assert changed <= {name for name in before if "running" in name or "num_batches" in name}
    first = heads.pyramid.cells[0]
    seen: list[torch.Tensor] = []
    first.conv.register_forward_hook(lambda _module, _args, out: seen.append(out))
    with torch.no_grad():
        for batch in proxy.trial_cache.shuffled(16, 2, 0):
            heads.pyramid(batch.features)
    expected = torch.stack([out.mean((0, 2, 3)) for out in seen]).mean(0)
    torch.testing.assert_close(first.norm.running_mean, expected, rtol=1e-4, atol=1e-5)


def test_a_trial_estimates_norms_anew_if_told_to(proxy: FrozenProxy) -> None:
    settings = CONFIG.proxy.model_copy(update={"norm_batches": 2})
    config = CONFIG.model_copy(update={"proxy": settings})
    anew = load_proxy(config, load_split(CONFIG.data, None, "train"), PRIOR, CPU, quiet)
    assert anew.folder == proxy.folder
    plain, told = proxy.trained(PRIOR, 0), anew.trained(PRIOR, 0)
    assert torch.equal(plain.pyramid.cells[0].conv.weight, told.pyramid.cells[0].conv.weight)
    assert not torch.equal(plain.pyramid.cells[0].norm.running_var, told.pyramid.cells[0].norm.running_var)
