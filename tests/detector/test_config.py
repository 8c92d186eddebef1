from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

from detector.config import DetectorSections
from detector.config_files import as_yaml, load_config
from detector.errors import UserError
from detector.presets import presets
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
        (
            "steps: 3",
            "unknown key 'steps'; did you mean 'training.steps' or 'proxy.pretrain.steps' or 'proxy.pool.steps'?",
        ),
        ("training: {seed: 1}\ntraining: {steps: 9}", "'training' stands twice, in lines 1 and 2"),
        ("training: {steps: 9, steps: 8}", "'steps' stands twice, in lines 1 and 1"),
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
    ) as error:
        load_config("shapez", Config)
    assert str(error.value).endswith("(did you mean 'shapes'?)")
    with pytest.raises(UserError, match=r"shapes, smoke$"):
        load_config("my.yaml", Config)


@pytest.mark.parametrize("name", presets())
def test_a_printed_configuration_is_the_same_again(tmp_path: Path, name: str) -> None:
    config = load_config(name, Config)
    (tmp_path / "printed.yaml").write_text(as_yaml(config))
    assert load_config(str(tmp_path / "printed.yaml"), Config) == config
    of_detector = as_yaml(load_config(name, DetectorSections).model_copy(update={"search": None, "proxy": None}))
    (tmp_path / "printed.yaml").write_text(of_detector)  # what train-final prints serves nas-search
    assert load_config(str(tmp_path / "printed.yaml"), Config).training == config.training


def test_a_file_states_differences_to_its_base(tmp_path: Path) -> None:
    (tmp_path / "ours.yaml").write_text(
        "base: shapes\ndetector: {cascade: {width: 96}}\nproxy: {confirm_steps: null}\n"
    )
    (tmp_path / "mine.yaml").write_text("base: ours.yaml\ntraining: {steps: 7}\n")
    mine, shapes = load_config(str(tmp_path / "mine.yaml"), Config), load_config("shapes", Config)
    assert (mine.training.steps, mine.detector.cascade.width, mine.proxy.confirm_steps) == (7, 96, None)
    assert mine.detector.rpn == shapes.detector.rpn
    assert mine.training == shapes.training.model_copy(update={"steps": 7})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: mine.yaml", "goes round in a circle"),
        ("base: folder/../mine.yaml", "goes round in a circle"),
        ('base: ""', "base must be the name of a preset or a file"),
        ("base: absent.yaml", r"absent\.yaml: cannot be read .*the base of .*mine\.yaml"),
        ("base: [shapes]", "base must be the name of a preset or a file"),
        ("base: shapes\nproxy: 3", r"proxy: .*given: 3"),
    ],
)
def test_mistakes_with_a_base(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        load_config(str(tmp_path / "mine.yaml"), Config)


def test_single_keys_can_be_set() -> None:
    changes = ["training.steps=9", "detector.cascade.pool_size=[7, 7, 14]", "proxy.confirm_steps=null"]
    config = load_config("shapes", Config, changes)
    assert (config.training.steps, config.detector.cascade.pool_size, config.proxy.confirm_steps) == (
        9,
        (7, 7, 14),
        None,
    )
    assert config.detector.rpn == load_config("shapes", Config).detector.rpn
    assert load_config("shapes", Config, ["training.steps=3", "training.steps=4"]).training.steps == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("proxy.stepz=3", r"shapes with --set proxy\.stepz=3: unknown key 'proxy\.stepz'; did you mean"),
        ("training.steps", "must be section.key=value, such as training.steps=200"),
        ("=3", "must be section.key=value"),
        ("training..steps=3", "must be section.key=value"),
        ("training.steps=[", "the value is not valid YAML"),
        ("training=3", r"training: .*given: 3"),
        ("training.steps=many", r"training\.steps: .*given: 'many'"),
    ],
)
def test_mistakes_with_set(change: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config("shapes", Config, [change])


def _sections(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    yield model
    for field in model.model_fields.values():
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from _sections(kind)


def test_every_key_says_what_it_is() -> None:
    for section in _sections(Config):
        assert section.__doc__
        for name, field in section.model_fields.items():
            assert field.description, f"{section.__name__}.{name}"


def test_the_benchmark_is_shapes_but_for_who_judges() -> None:
    shapes, benchmark = (load_config(name, Config).model_dump() for name in ("shapes", "benchmark"))
    assert benchmark["proxy"].pop("protocol") == "tabular"
    assert shapes["proxy"].pop("protocol") == "frozen"
    assert shapes["proxy"].pop("confirm_steps")
    assert benchmark["proxy"].pop("confirm_steps") is None
    assert benchmark == shapes
