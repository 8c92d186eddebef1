"""The configuration of the detector: typed, frozen, and strict about unknown keys. Every key says what it is; that is
its documentation, too (docs/configuration.md is made of it).
"""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from detector.choices import BackboneNorm, CascadeTest, Deformable, HeadKind, Nms, Norm, Sampling


class Section(BaseModel):
    """One section of a configuration. An unknown key is an error, never a silent no-op."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class ShapesConfig(Section):
    """The built-in procedural set (detector/shapes.py)."""

    train_images: PositiveInt = 6000
    """Images of the split `train`."""
    val_images: PositiveInt = 1000
    """Images of the split `val`."""
    tiny_images: PositiveInt = 500
    """Images of the splits `tiny` and `tiny_val`, which hold rare classes only."""
    image_px: int = Field(default=64, ge=32)
    """Side of the square images, in pixels."""
    seed: NonNegativeInt = 0
    """Of the generator."""


class SplitFiles(Section):
    """Where one split lies, when the layout of --data is not the usual one. Relative to --data."""

    annotations: Path
    """The file in COCO form."""
    images: Path
    """The folder of its images."""


class DataConfig(Section):
    """Which data set."""

    source: Literal["shapes", "coco"] = "coco"
    """`coco`: files in COCO form below --data. `shapes`: generated."""
    shapes: ShapesConfig = ShapesConfig()
    """Of source `shapes`."""
    train: str | SplitFiles = "train"
    """What is trained on: a split's name, or its files."""
    val: str | SplitFiles = "val"
    """What is judged on in the end, and never read by a search."""
    skip_empty_boxes: bool = False
    """Leave out boxes without area (COCO's own files have two) instead of refusing them."""
    skip_missing_images: bool = False
    """Leave out images whose files are not there, with their boxes."""


class BackboneConfig(Section):
    """A timm model."""

    name: str = "resnet50"
    """Its name in timm."""
    weights: str = "pretrained"
    """`none`, `pretrained` (timm's), or the path of a state dict."""
    norm: BackboneNorm = "frozen_bn"
    """What its batch norms become: `bn`, `sync_bn` (over all processes), `frozen_bn`, `gn`; `own` leaves them."""
    stem_width: PositiveInt | None = None
    """Channels of the stem, where they differ from the model's own."""
    channels: tuple[PositiveInt, ...] | None = None
    """Channels of C2, C3, C4, C5, where they differ from the model's own."""
    weight_standardisation: bool = False
    """Of convolutions followed by norm `gn` (Qiao et al. 2019, arXiv:1903.10520)."""
    deformable: Deformable | None = None
    """Deformable 3x3 convolutions: `v1` (Dai et al. 2017, arXiv:1703.06211) or `v2` (Zhu et al. 2018,
    arXiv:1811.11168)."""
    deformable_stages: tuple[Literal[3, 4, 5], ...] = (3, 4, 5)
    """In which stages: C3, C4, C5."""
    frozen_below: Literal[3, 4, 5] | None = None
    """What lies before this stage keeps its weights: 3 keeps stem and C2 (Girshick et al. 2018, Detectron)."""

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
    """Region proposals (Ren et al. 2015, arXiv:1506.01497)."""

    anchor_scale: PositiveFloat = 4.0
    """Side of the square anchor, in strides of its level."""
    anchor_ratios: tuple[PositiveFloat, ...] = (0.5, 1.0, 2.0)
    """Height over width, an anchor for each."""
    samples: PositiveInt = 256
    """Anchors an image that are trained on, half of them positive at most."""
    train_candidates: PositiveInt = 2000
    """Best anchors of a level that go on to suppression, in training."""
    train_proposals: PositiveInt = 1000
    """What is left of an image after it, in training."""
    test_candidates: PositiveInt = 1000
    """Best anchors of a level that go on to suppression, at test."""
    test_proposals: PositiveInt = 1000
    """What is left of an image after it, at test."""
    nms_iou: PositiveFloat = 0.7
    """Overlap from which on two proposals are one."""


class CascadeConfig(Section):
    """The box heads, three by default (Cai & Vasconcelos 2018, arXiv:1712.00726)."""

    head: HeadKind | tuple[HeadKind, ...] = "2fc"
    """`2fc`: two fully connected layers; `4conv1fc`: four convolutions and one. One for all stages, or a list."""
    pool_size: PositiveInt | tuple[PositiveInt, ...] = 7
    """Side of a pooled region, in cells; 14 is the large-resolution head. One for all stages, or a list."""
    sampling_ratio: PositiveInt = 2
    """Samples a pooled cell in each direction (RoIAlign)."""
    level_cells: PositiveFloat = 14.0
    """A box whose side has this many cells is pooled one level up: 224 px at stride 16."""
    width: PositiveInt = 1024
    """Of the fully connected layers."""
    ious: tuple[PositiveFloat, ...] = (0.5, 0.6, 0.7)
    """Overlap from which on a region is an object, stage by stage."""
    delta_stds: tuple[tuple[PositiveFloat, PositiveFloat, PositiveFloat, PositiveFloat], ...] = (
        (0.1, 0.1, 0.2, 0.2),
        (1 / 20, 1 / 20, 1 / 10, 1 / 10),
        (1 / 30, 1 / 30, 1 / 15, 1 / 15),
    )
    """What box deltas (x, y, log width, log height) are divided by, stage by stage."""
    loss_weights: tuple[PositiveFloat, ...] = (1.0, 0.5, 0.25)
    """Of the stages' losses."""
    samples: PositiveInt = 512
    """Regions an image that each stage is trained on."""
    positive_fraction: PositiveFloat = 0.25
    """Share of objects among them, at most."""
    score_threshold: NonNegativeFloat = 0.05
    """Detections below it are dropped."""
    nms_iou: PositiveFloat = 0.5
    """Overlap from which on two detections of a class are one."""
    detections: PositiveInt = 100
    """Kept of an image, at most."""

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
    """How a trained detector is tested. All of it may differ from run to run with the same weights."""

    __test__ = False  # pytest would take it for a test

    cascade: CascadeTest = "input"
    """Where stages score: each at its `input` box; `shared`: all at the last stage's (as in the paper); `adaptive`:
    each at the box that it predicts itself."""
    nms: Nms = "hard"
    """`hard`, or Soft-NMS (Bodla et al. 2017, arXiv:1704.04503): `linear`, `gaussian`."""
    soft_nms_sigma: PositiveFloat = 0.5
    """Of `gaussian`."""
    scales: tuple[PositiveInt, ...] = ()
    """Short sides, in pixels, at which each image is seen; the one of training when empty."""
    long_side: PositiveInt = 2100
    """What long sides are cut to where `scales` are given, in pixels."""
    flip: bool = False
    """See the mirrored image, too. Regions of all views are merged before duplicates are suppressed."""


class DetectorConfig(Section):
    """Backbone -> FPN -> pyramid -> RPN -> cascade."""

    backbone: BackboneConfig = BackboneConfig()
    """What makes features."""
    base_stride: Literal[4, 8] = 8
    """Of P3, in pixels; each further level doubles it."""
    channels: PositiveInt = 256
    """Of FPN and pyramid."""
    pyramid_norm: Norm = "bn"
    """Norm of the merging cells."""
    rpn: RpnConfig = RpnConfig()
    """Region proposals."""
    cascade: CascadeConfig = CascadeConfig()
    """Box heads."""
    testing: TestingConfig = TestingConfig()
    """How it is tested."""


class OptimizationConfig(Section):
    """How weights are fitted: optimizer, schedule and length."""

    optimizer: Literal["sgd", "adamw"] = "sgd"
    """`sgd` with momentum, or `adamw`."""
    learning_rate: PositiveFloat = 0.02
    """After the warm-up."""
    weight_decay: NonNegativeFloat = 1e-4
    """Norms and biases are not decayed."""
    momentum: NonNegativeFloat = 0.9
    """Of `sgd`."""
    batch_size: PositiveInt = 16
    """Images a step, over all processes."""
    steps: PositiveInt = 90_000
    """Updates in all."""
    warmup_steps: NonNegativeInt = 500
    """First steps, in which the learning rate rises from nearly nothing."""
    schedule: Literal["cosine", "step"] = "step"
    """How the learning rate falls: to 0 along a cosine, or to a tenth at each milestone."""
    milestones: tuple[PositiveFloat, ...] = (0.667, 0.889)
    """Of `step`: fractions of `steps`."""
    clip_norm: PositiveFloat | None = None
    """Longest gradient; longer ones are scaled down."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the forward pass, on CUDA only."""

    @property
    def peak_learning_rate(self) -> float:
        """What it is after the warm-up."""
        return self.learning_rate


class TrainingConfig(OptimizationConfig):
    """Training of the whole detector on images. The resize is that of Lin et al. 2017, arXiv:1612.03144."""

    sampling: Sampling = "uniform"
    """Which images are drawn: `uniform`, `class_aware`, `class_diversity` (detector/sampling.py)."""
    diversity_epsilon: NonNegativeFloat = 0.1
    """Of `class_diversity`: images of one class are drawn the less the nearer it is to 0."""
    short_side: PositiveInt = 800
    """Images are resized to it, in pixels, ..."""
    long_side: PositiveInt = 1333
    """... unless their long side would then exceed this."""
    multi_scale: tuple[PositiveInt, PositiveInt] | None = None
    """Least and most, in pixels: short sides of training images are drawn from there. At test `short_side` holds."""
    multi_scale_long_side: PositiveInt = 1600
    """Limit of their long sides."""
    group_orientations: bool = True
    """Batches hold either wide or high images: less padding."""
    flip: bool = True
    """Mirror images at random, half of them."""
    loader_workers: NonNegativeInt = 4
    """Processes that load images; 0: none but the trainer itself."""
    average_decay: float | None = Field(default=None, gt=0, lt=1)
    """The result is a moving average of the weights with this decay (0.999, say), and not the last ones."""
    reference_batch_size: PositiveInt | None = None
    """What `learning_rate` is for: it changes with `batch_size` in proportion (Goyal et al. 2017, arXiv:1706.02677)."""
    accumulate: PositiveInt = 1
    """Parts that a batch is taken in, for want of memory. Gradients are averaged; norms and losses see one part."""
    evaluate_steps: PositiveInt | None = None
    """After every so many steps the AP on `val` is measured, too, and the best weights are kept."""
    seed: NonNegativeInt = 0
    """Of initial weights, draws and augmentation."""

    @property
    def peak_learning_rate(self) -> float:
        """Scaled to the batch."""
        return self.learning_rate * self.batch_size / (self.reference_batch_size or self.batch_size)

    @model_validator(mode="after")
    def _multi_scale_is_a_range(self) -> Self:
        if self.multi_scale is not None and self.multi_scale[0] > self.multi_scale[1]:
            raise ValueError(f"multi_scale must be [least, most] (given: {list(self.multi_scale)})")
        return self


class DetectorSections(Section):
    """What the detector's own commands read; the search's sections are permitted and left alone."""

    data: DataConfig = DataConfig()
    """Which data set."""
    detector: DetectorConfig = DetectorConfig()
    """The final detector."""
    training: TrainingConfig = TrainingConfig()
    """Its training."""
    search: Any = None
    """The search's own; see nas/config.py."""
    proxy: Any = None
    """The search's own; see nas/config.py."""
