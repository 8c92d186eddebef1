from pathlib import Path

import pytest

from detector.config import DetectorSections, load_config, presets
from detector.errors import UserError
from nas.config import Config


@pytest.mark.parametrize("name", presets())
def test_presets_are_valid_for_both_programs(name: str) -> None:
    ours = load_config(name, Config)
    theirs = load_config(name, DetectorSections)
    assert ours.detector == theirs.detector


def test_presets_are_those_documented() -> None:
    assert presets() == ["bccd", "benchmark", "coco", "objects365", "shapes", "smoke"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trainig: {}", "unknown key 'trainig'; did you mean 'training'?"),
        ("detector: {cascade: {pool_sise: 3}}", "unknown key 'detector.cascade.pool_sise'; did you mean 'pool_size'?"),
        ("proxy: {trial: {stepz: 3}}", "unknown key 'proxy.trial.stepz'; did you mean 'steps'?"),
        ("proxy: {detector: {chanels: 3}}", "unknown key 'proxy.detector.chanels'; did you mean 'channels'?"),
        ("training: {steps: many}", r"training\.steps: .*given: 'many'"),
        ("training: {steps: -1}", r"training\.steps: .*greater than 0 \(given: -1\)"),
        ("search: {algorithm: magic}", r"search\.algorithm: .*'reinforce'"),
        ("proxy: {trial: {steps: 0}}", "proxy: trial.steps 0 needs norm_batches"),
        ("proxy: {protocol: full, trial: {steps: 0}}", "proxy: trial.steps must be at least 1 with protocol full"),
        ("proxy: {protocol: tabular, confirm_steps: 9}", "proxy: confirm_steps must be left out with protocol tabular"),
        ("proxy: {pool: {steps: 0}}", "proxy.pool.steps"),
        ("proxy: {parts: [0.5, 0.4, 0.2]}", "proxy: parts must add up to 1, these add up to 1.1"),
        ("detector: {backbone: {weights: none, norm: frozen_bn}}", "frozen_bn needs weights"),
        ("detector: {cascade: {ious: [0.5]}}", "one entry a stage"),
        ("detector: {cascade: {pool_size: big}}", r"detector\.cascade\.pool_size: .*integer.* \(given: 'big'\)"),
        ("data: {train: {annotations: a.json}}", r"data\.train\.images: Field required"),
        ("data: {train: {annotation: a, images: b}}", "'data.train.annotation'; did you mean 'annotations'?"),
        ("proxy: {cache_limit_gb: .inf}", r"cache_limit_gb: .*finite"),
        ("a: [", "is not valid YAML"),
        ("- 1", "must hold sections"),
        ("", "must hold sections"),
    ],
)
def test_mistakes_are_one_line_that_names_the_key(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as error:
        load_config(str(path), Config)
    assert "\n" not in str(error.value)
    assert "c.yaml" in str(error.value)


def test_unknown_configurations_name_the_presets() -> None:
    with pytest.raises(
        UserError, match=r"config shapez: cannot be read .* one of: bccd, benchmark, coco, objects365, shapes, smoke"
    ):
        load_config("shapez", Config)


def test_the_benchmark_is_shapes_but_for_who_judges() -> None:
    shapes, benchmark = (load_config(name, Config).model_dump() for name in ("shapes", "benchmark"))
    assert benchmark["proxy"].pop("protocol") == "tabular"
    assert shapes["proxy"].pop("protocol") == "frozen"
    assert shapes["proxy"].pop("confirm_steps")
    assert benchmark["proxy"].pop("confirm_steps") is None
    assert benchmark == shapes
