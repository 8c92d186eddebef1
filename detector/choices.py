"""The words that configurations and options choose from. Without imports, so that commands start at once."""

from typing import Literal

BackboneNorm = Literal["own", "bn", "sync_bn", "frozen_bn", "gn"]
Norm = Literal["bn", "sync_bn", "gn"]
Deformable = Literal["v1", "v2"]
HeadKind = Literal["2fc", "4conv1fc"]
CascadeTest = Literal["input", "shared", "adaptive"]
SoftNms = Literal["linear", "gaussian"]
Nms = Literal["hard", "linear", "gaussian"]
Fusion = Literal["wbf", "nms", "linear", "gaussian"]
Sampling = Literal["uniform", "class_aware", "class_diversity"]
