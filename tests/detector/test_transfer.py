import pytest
import torch

from detector.architecture import PRIORS
from detector.cascade_rcnn import CascadeRcnn
from detector.checkpoint import TrainedModel
from detector.config import DetectorSections
from detector.config_files import load_config
from detector.errors import UserError
from detector.transfer import transfer

CONFIG = load_config("smoke", DetectorSections)
CPU = torch.device("cpu")


def trained(classes: tuple[str, ...], prior: str | None = "nas-fpn", **changes) -> TrainedModel:
    graph = prior and PRIORS[prior]
    detector = CONFIG.detector.model_copy(update=changes)
    config = CONFIG.model_copy(update={"detector": detector})
    return TrainedModel(CascadeRcnn(detector, graph, len(classes)), graph, config, classes)


def test_the_same_detector_is_taken_over_whole() -> None:
    source, model = trained(("cat", "dog")), trained(("cat", "dog")).model
    result = transfer(model, ("cat", "dog"), source)
    assert (result.left, result.unused, result.classes) == ([], [], ["cat", "dog"])
    for name, weight in model.state_dict().items():
        assert weight.equal(source.model.state_dict()[name]), name


def test_classes_are_mapped_by_name_and_background_stays_last() -> None:
    source, target = trained(("cat", "dog", "bird")), trained(("Bird ", "whale", "cat"))
    before = {name: weight.clone() for name, weight in target.model.state_dict().items()}
    result = transfer(target.model, target.classes, source)
    assert result.classes == ["Bird ", "cat"]
    name = "heads.cascade.heads.1.classify.weight"
    ours, theirs = target.model.state_dict()[name], source.model.state_dict()[name]
    assert ours[0].equal(theirs[2])
    assert ours[1].equal(before[name][1])
    assert ours[2].equal(theirs[0])
    assert ours[3].equal(theirs[3])
    assert name in result.taken


def test_other_numbers_of_classes_fit() -> None:
    source, target = trained(tuple("abcdefgh")), trained(("h", "z"))
    transfer(target.model, target.classes, source)
    name = "heads.cascade.heads.0.classify.bias"
    source.model.state_dict()[name].normal_()
    transfer(target.model, target.classes, source)
    ours, theirs = target.model.state_dict()[name], source.model.state_dict()[name]
    assert ours[0] == theirs[7]
    assert ours[2] == theirs[8]


def test_parts_that_differ_are_named() -> None:
    source, target = trained(("a",), prior=None), trained(("a",))
    result = transfer(target.model, ("a",), source)
    assert all("pyramid" in name for name in result.left)
    assert len(result.left) == 7 * 7  # weight and bias of the convolution; five of the norm
    assert result.unused == []
    back = transfer(source.model, ("a",), target)
    assert back.unused == result.left
    cascade = CONFIG.detector.cascade.model_copy(update={"pool_size": 3})
    wider = trained(("a",), cascade=cascade)
    other = transfer(wider.model, ("a",), trained(("a",)))
    assert other.left == [f"heads.cascade.heads.{stage}.reduce.weight" for stage in range(3)]
    assert other.unused == other.left


@pytest.mark.parametrize(
    "backbone", [{"deformable": "v2", "deformable_stages": (4, 5)}, {"norm": "gn", "weight_standardisation": True}]
)
def test_a_convolution_made_deformable_or_standardised_is_the_same_convolution(backbone: dict) -> None:
    plain = {"norm": backbone.get("norm", "bn")}
    source, target = (
        trained(("a",), backbone=CONFIG.detector.backbone.model_copy(update=changes)) for changes in (plain, backbone)
    )
    forth = transfer(target.model, ("a",), source)
    assert forth.unused == []
    assert all(".predict." in name for name in forth.left)
    fresh = trained(("a",), backbone=source.config.detector.backbone)
    back = transfer(fresh.model, ("a",), target)
    assert back.left == []
    for name, weight in fresh.model.state_dict().items():
        assert weight.equal(source.model.state_dict()[name]), name


def test_nothing_that_fits_is_a_mistake() -> None:
    source = trained(("a",))
    source.model.state_dict = lambda: {}
    with pytest.raises(UserError, match="no weight of that detector fits"):
        transfer(trained(("a",)).model, ("a",), source)
