"""The configuration: typed, frozen, and strict about unknown keys. A config is a preset's name or a YAML file."""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, get_args

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails

from detector.choices import BackboneNorm, CascadeTest, Deformable, HeadKind, Nms, Norm, Sampling
from detector.errors import UserError
from detector.presets import preset_folder, presets


class Section(BaseModel):
    """One section of a configuration. An unknown key is an error, never a silent no-op."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ShapesConfig(Section):
    """The built-in procedural set (detector/shapes.py)."""

    train_images: PositiveInt = 6000
    val_images: PositiveInt = 1000
    tiny_images: PositiveInt = 500
    image_px: int = Field(default=64, ge=32)
    seed: NonNegativeInt = 0


class SplitFiles(Section):
    """Where one split lies, when the layout of --data is not the usual one. Relative to --data."""

    annotations: Path
    images: Path


class DataConfig(Section):
    """Which data set. `coco`: files in COCO form below --data; `shapes`: generated from its seed."""

    source: Literal["shapes", "coco"] = "coco"
    shapes: ShapesConfig = ShapesConfig()
    train: str | SplitFiles = "train"
    val: str | SplitFiles = "val"
    skip_empty_boxes: bool = False  # leave out boxes without area (COCO's own files have two) instead of refusing
    skip_missing_images: bool = False  # leave out images whose files are not there, with their boxes


class BackboneConfig(Section):
    """A timm model. weights: none, pretrained (timm's), or the path of a state dict. norm: what batch norms become, or
    the model's own norms.

    deformable replaces the 3x3 convolutions of deformable_stages (C3, C4, C5 as 3, 4, 5) by deformable ones.
    weight_standardisation is for convolutions followed by norm gn (Qiao et al. 2019, arXiv:1903.10520). What lies
    before stage frozen_below keeps its weights: 3 keeps stem and C2, as Girshick et al. 2018 (Detectron) do.
    """

    name: str = "resnet50"
    weights: str = "pretrained"
    norm: BackboneNorm = "frozen_bn"
    stem_width: PositiveInt | None = None
    channels: tuple[PositiveInt, ...] | None = None
    weight_standardisation: bool = False
    deformable: Deformable | None = None
    deformable_stages: tuple[Literal[3, 4, 5], ...] = (3, 4, 5)
    frozen_below: Literal[3, 4, 5] | None = None

    @model_validator(mode="after")
    def _standardised_weights_need_group_norm(self) -> Self:
        if self.weight_standardisation and self.norm != "gn":
            raise ValueError(f"weight_standardisation needs norm gn (given: {self.norm})")
        return self

    @model_validator(mode="after")
    def _what_is_frozen_needs_weights(self) -> Self:
        if self.norm == "frozen_bn" and self.weights == "none":
            raise ValueError("norm frozen_bn needs weights: statistics that were never fitted would stay as they are")
        if self.frozen_below is not None and self.weights == "none":
            raise ValueError("frozen_below needs weights: layers that were never trained would stay as they are")
        return self


class RpnConfig(Section):
    """Region proposals (Ren et al. 2015, arXiv:1506.01497). Counts are per image, candidates per level."""

    anchor_scale: PositiveFloat = 4.0  # anchor side in strides
    anchor_ratios: tuple[PositiveFloat, ...] = (0.5, 1.0, 2.0)
    samples: PositiveInt = 256
    train_candidates: PositiveInt = 2000
    train_proposals: PositiveInt = 1000
    test_candidates: PositiveInt = 1000
    test_proposals: PositiveInt = 1000
    nms_iou: PositiveFloat = 0.7


class CascadeConfig(Section):
    """The three box heads (Cai & Vasconcelos 2018, arXiv:1712.00726).

    head and pool_size: one value for all stages, or one for each.
    """

    head: HeadKind | tuple[HeadKind, ...] = "2fc"
    pool_size: PositiveInt | tuple[PositiveInt, ...] = 7
    sampling_ratio: PositiveInt = 2
    level_cells: PositiveFloat = 14.0  # a box of this many cells' side goes one level up: 224 px at stride 16
    width: PositiveInt = 1024
    ious: tuple[PositiveFloat, ...] = (0.5, 0.6, 0.7)
    delta_stds: tuple[tuple[PositiveFloat, PositiveFloat, PositiveFloat, PositiveFloat], ...] = (
        (0.1, 0.1, 0.2, 0.2),
        (1 / 20, 1 / 20, 1 / 10, 1 / 10),
        (1 / 30, 1 / 30, 1 / 15, 1 / 15),
    )
    loss_weights: tuple[PositiveFloat, ...] = (1.0, 0.5, 0.25)
    samples: PositiveInt = 512
    positive_fraction: PositiveFloat = 0.25
    score_threshold: NonNegativeFloat = 0.05
    nms_iou: PositiveFloat = 0.5
    detections: PositiveInt = 100

    @model_validator(mode="after")
    def _one_of_each_per_stage(self) -> Self:
        each = (self.ious, self.delta_stds, self.loss_weights, self.head_kinds, self.pool_sizes)
        if len({len(entries) for entries in each}) > 1:
            raise ValueError("ious, delta_stds, loss_weights, and lists of head or pool_size need one entry a stage")
        return self

    @property
    def head_kinds(self) -> tuple[HeadKind, ...]:
        """One for each stage."""
        return self.head if isinstance(self.head, tuple) else (self.head,) * len(self.ious)

    @property
    def pool_sizes(self) -> tuple[int, ...]:
        """One for each stage."""
        return self.pool_size if isinstance(self.pool_size, tuple) else (self.pool_size,) * len(self.ious)


class TestingConfig(Section):
    """How a trained detector is tested. All of it may differ from run to run with the same weights.

    cascade: where the heads score (detector/cascade.py). scales: short sides at which each image is tested, those of
    training when empty; long sides are cut to long_side. flip: also the mirrored image. The regions of all are merged
    before duplicates are suppressed.
    """

    __test__ = False  # pytest would take it for a test

    cascade: CascadeTest = "input"
    nms: Nms = "hard"
    soft_nms_sigma: PositiveFloat = 0.5  # of gaussian Soft-NMS; Bodla et al. 2017, arXiv:1704.04503
    scales: tuple[PositiveInt, ...] = ()
    long_side: PositiveInt = 2100
    flip: bool = False


class DetectorConfig(Section):
    """Backbone -> FPN -> pyramid -> RPN -> cascade."""

    backbone: BackboneConfig = BackboneConfig()
    base_stride: Literal[4, 8] = 8  # of P3
    channels: PositiveInt = 256
    pyramid_norm: Norm = "bn"
    rpn: RpnConfig = RpnConfig()
    cascade: CascadeConfig = CascadeConfig()
    testing: TestingConfig = TestingConfig()


class OptimizationConfig(Section):
    """How weights are fitted: optimizer, schedule and length."""

    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: PositiveFloat = 0.02
    weight_decay: NonNegativeFloat = 1e-4
    momentum: NonNegativeFloat = 0.9
    batch_size: PositiveInt = 16
    steps: PositiveInt = 90_000
    warmup_steps: NonNegativeInt = 500
    schedule: Literal["cosine", "step"] = "step"
    milestones: tuple[PositiveFloat, ...] = (0.667, 0.889)  # fractions of steps at which the rate falls to a tenth
    clip_norm: PositiveFloat | None = None
    precision: Literal["float32", "bfloat16", "float16"] = "float32"  # of the forward pass, on CUDA only

    @property
    def peak_learning_rate(self) -> float:
        """What it is after the warm-up."""
        return self.learning_rate


class TrainingConfig(OptimizationConfig):
    """Training of the whole detector on images. The resize is that of Lin et al. 2017, arXiv:1612.03144.

    sampling: which images are drawn (detector/sampling.py); diversity_epsilon is class_diversity's. multi_scale (least,
    most): training images get a short side drawn from that range for each step, long sides cut to
    multi_scale_long_side; short_side and long_side remain the size at test. group_orientations: batches hold either
    wide or high images. reference_batch_size: what learning_rate is for; it changes with batch_size in proportion
    (Goyal et al. 2017, arXiv:1706.02677). accumulate: batches are taken in so many parts, one after the other, for want
    of memory; gradients are averaged, norms and losses see a part at a time. average_decay: the result is the moving
    average of the weights with this decay (0.999, say), not the last. evaluate_steps: the validation split's AP after
    every so many steps, too, and the best weights kept.
    """

    sampling: Sampling = "uniform"
    diversity_epsilon: NonNegativeFloat = 0.1
    short_side: PositiveInt = 800
    long_side: PositiveInt = 1333
    multi_scale: tuple[PositiveInt, PositiveInt] | None = None
    multi_scale_long_side: PositiveInt = 1600
    group_orientations: bool = True
    flip: bool = True
    loader_workers: NonNegativeInt = 4
    average_decay: float | None = Field(default=None, gt=0, lt=1)
    reference_batch_size: PositiveInt | None = None
    accumulate: PositiveInt = 1
    evaluate_steps: PositiveInt | None = None
    seed: NonNegativeInt = 0

    @property
    def peak_learning_rate(self) -> float:
        """Scaled to the batch."""
        return self.learning_rate * self.batch_size / (self.reference_batch_size or self.batch_size)

    @model_validator(mode="after")
    def _multi_scale_is_a_range(self) -> Self:
        if self.multi_scale is not None and self.multi_scale[0] > self.multi_scale[1]:
            raise ValueError(f"multi_scale must be [least, most] (given: {list(self.multi_scale)})")
        return self


class DetectorSections(BaseModel):
    """What the detector's own commands read; the search's sections are permitted and left alone."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: DataConfig = DataConfig()
    detector: DetectorConfig = DetectorConfig()
    training: TrainingConfig = TrainingConfig()
    search: Any = None
    proxy: Any = None


Config = TypeVar("Config", bound=BaseModel)


def load_config(name: str, model: type[Config]) -> Config:
    """Read a preset (`shapes`) or a YAML file (`my.yaml`) as `model`. Raises UserError in one line."""
    return parse_config(_read_yaml(name), model, where=name)


def parse_config(content: Mapping[str, Any], model: type[Config], where: str) -> Config:
    """Validate sections that are already plain values. Raises UserError naming the key and the nearest valid one."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{where}: {_first_problem(error, model)}") from error


MOST_CHARACTERS = 200_000


def _read_yaml(name: str) -> Mapping[str, Any]:
    is_preset = name in presets()
    try:
        text = (preset_folder() / f"{name}.yaml" if is_preset else Path(name)).read_text(encoding="utf-8")
        if len(text) > MOST_CHARACTERS:  # a megabyte takes the parser seconds
            raise UserError(f"config {name}: has {len(text)} characters, that is no configuration")
        content = yaml.safe_load(text)
    except OSError as error:
        raise UserError(
            f"config {name}: cannot be read ({error.strerror}); give a file or one of: {', '.join(presets())}"
        ) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"config {name}: is not valid YAML ({' '.join(str(error).split())})") from error
    if not isinstance(content, Mapping):
        raise UserError(f"config {name}: must hold sections such as `data:` and `detector:`")
    return content


def _first_problem(error: ValidationError, model: type[BaseModel]) -> str:
    problem = _most_specific(error.errors(), model)
    path = _keys_of(problem, model)
    key = ".".join(path)
    if problem["type"] == "extra_forbidden":
        valid = _valid_keys(model, path[:-1])
        nearest = difflib.get_close_matches(path[-1], valid, n=1, cutoff=0.0)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
        return f"unknown key {key!r}{hint}"
    message = problem["msg"].removeprefix("Value error, ")
    given = problem["input"]
    shown = f" (given: {given!r})" if isinstance(given, str | int | float | bool | type(None)) else ""
    return f"{key}: {message}{shown}" if key else message


def _most_specific(problems: Sequence[ErrorDetails], model: type[BaseModel]) -> ErrorDetails:
    """The first problem. Where a value may be of several kinds, the one of the kind that fits it furthest."""
    place = _keys_of(problems[0], model)
    same = [problem for problem in problems if _keys_of(problem, model)[: len(place)] == place]
    return max(same, key=lambda problem: (len(problem["loc"]), problem["type"] == "extra_forbidden"))


def _keys_of(problem: ErrorDetails, model: type[BaseModel]) -> list[str]:
    """Where a problem is, without the names of types that pydantic puts where a value may be of several kinds."""
    keys: list[str] = []
    for part in problem["loc"]:
        is_unknown_key = problem["type"] == "extra_forbidden" and part == problem["loc"][-1]
        if isinstance(part, int) or is_unknown_key or part in _valid_keys(model, keys):
            keys.append(str(part))
    return keys


def _valid_keys(model: type[BaseModel], path: list[str]) -> list[str]:
    for part in path:
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        options = [annotation, *get_args(annotation)]  # a section, or one of a union
        sections = [option for option in options if isinstance(option, type) and issubclass(option, BaseModel)]
        if not sections:
            return []
        model = sections[0]
    return list(model.model_fields)
