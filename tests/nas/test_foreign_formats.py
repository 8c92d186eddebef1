"""Graphs in other people's forms: equal to ours, or refused."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detector.architecture import PRIORS, Attention
from detector.errors import UserError
from detector.nas_fpn import NasFpn
from nas.foreign_formats import onnx_model, tensorflow_block_specs, torch_module

SIZES = [(24, 33), (12, 17), (6, 9), (3, 5), (2, 3)]  # odd ones, too
CHANNELS = 8


def loaded(source: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(compile(source, "made", "exec"), names)
    return names


def features() -> list[Tensor]:
    return [torch.randn(2, CHANNELS, *size) for size in SIZES]


@pytest.mark.parametrize("norm", ["bn", "gn", "sync_bn"])
@pytest.mark.parametrize("attention", [Attention("max", "coarser"), Attention("avg", "finer")])
@pytest.mark.parametrize("repeats", [1, 2])
def test_the_module_computes_what_ours_does(random_graphs, norm: Any, attention: Attention, repeats: int) -> None:
    for graph in [PRIORS["nas-fpn"], PRIORS["fpn"], *random_graphs(8)]:
        graph = replace(graph, attention=attention, repeats=repeats)
        ours = NasFpn(graph, CHANNELS, "bn" if norm == "sync_bn" else norm)
        theirs: nn.Module = loaded(torch_module(graph, CHANNELS, norm))["Pyramid"]()
        theirs.load_state_dict(ours.state_dict())
        given = features()
        for mine, other in zip(ours(given), theirs(given), strict=True):
            torch.testing.assert_close(mine, other, rtol=0, atol=1e-6)


def test_the_module_needs_torch_only(tmp_path: Path) -> None:
    (tmp_path / "best.py").write_text(torch_module(PRIORS["nas-fpn"], 8, "gn"))
    script = (
        "import sys, torch, best; best.Pyramid()([torch.randn(1, 8, s, s) for s in (16, 8, 4, 2, 1)]);"
        "print([m for m in sys.modules if m.split('.')[0] in ('nas', 'detector', 'torchvision', 'timm')])"
    )
    ended = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ended.stdout == "[]\n"


@pytest.mark.parametrize(("graph", "norm"), [("nas-fpn", "bn"), ("random", "gn")])
def test_the_onnx_model_computes_what_the_module_does(random_graphs, graph: str, norm: Any) -> None:
    """Both with the weights that seed 0 gives."""
    runtime = pytest.importorskip("onnxruntime")
    found = PRIORS[graph] if graph in PRIORS else replace(random_graphs(3)[2], attention=Attention("avg", "finer"))
    content = onnx_model(found, CHANNELS, norm, SIZES)
    assert str(Path(__file__).parents[2]).encode() not in content  # nothing of this machine is in it
    assert b"site-packages" not in content
    session = runtime.InferenceSession(content)
    torch.manual_seed(0)
    module: nn.Module = loaded(torch_module(found, CHANNELS, norm))["Pyramid"]().eval()
    given = [torch.randn(1, CHANNELS, *size) for size in SIZES]
    assert [put.name for put in session.get_inputs()] == ["P3", "P4", "P5", "P6", "P7"]
    assert [put.name for put in session.get_outputs()] == ["N3", "N4", "N5", "N6", "N7"]
    theirs = session.run(None, {f"P{level}": x.numpy() for level, x in zip(range(3, 8), given, strict=True)})
    for mine, other in zip(module(given), theirs, strict=True):
        torch.testing.assert_close(mine.detach(), torch.from_numpy(other), rtol=1e-5, atol=1e-5)


def test_without_its_packages_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nas.foreign_formats.find_spec", lambda name: None if name == "onnxscript" else object())
    with pytest.raises(UserError, match=r"--format onnx needs onnxscript: pip install -e '\.\[onnx\]'"):
        onnx_model(PRIORS["nas-fpn"], CHANNELS, "bn", SIZES)


def as_the_garden_builds(specs: list[tuple[int, str, tuple[int, int], bool]], given: list[Tensor]) -> list[list[int]]:
    """Which features go into every block there, by its own rule of leaves: those that no block has consumed yet."""
    levels, used = [3, 4, 5, 6, 7], [0] * len(given)
    merged = []
    for level, _, inputs, is_output in specs:
        for source in inputs:
            used[source] += 1
        leaves = [i for i, count in enumerate(used) if count == 0 and levels[i] == level] if is_output else []
        for leaf in leaves:
            used[leaf] += 1
        merged.append(leaves)
        levels.append(level)
        used.append(0)
    return merged


def test_the_published_graph_is_the_published_specification() -> None:
    """NASFPN_BLOCK_SPECS of tensorflow/models, official/vision/modeling/decoders/nasfpn.py."""
    specs = loaded(tensorflow_block_specs(PRIORS["nas-fpn"], 256, "bn"))["NASFPN_BLOCK_SPECS"]
    assert specs == [
        (4, "attention", (1, 3), False),
        (4, "sum", (1, 5), False),
        (3, "sum", (0, 6), True),
        (4, "sum", (6, 7), True),
        (5, "attention", (7, 8), True),
        (7, "attention", (6, 9), True),
        (6, "attention", (9, 10), True),
    ]


def test_other_graphs_have_the_same_leaves_there_or_are_refused(random_graphs) -> None:
    refused = 0
    for graph in random_graphs(200):
        specs = [
            (cell.level, cell.op, cell.inputs, index >= graph.num_intermediate)
            for index, cell in enumerate(graph.cells)
        ]
        same = as_the_garden_builds(specs, features()) == [[*graph.leaves_into(i)] for i in range(len(graph.cells))]
        if same:
            assert loaded(tensorflow_block_specs(graph, 256, "bn"))["NASFPN_BLOCK_SPECS"] == specs
        else:
            refused += 1
            with pytest.raises(UserError, match="is first consumed after the output of level"):
                tensorflow_block_specs(graph, 256, "bn")
    assert 0 < refused < 200


def test_another_attention_is_refused() -> None:
    with pytest.raises(UserError, match="gated by the maximum"):
        tensorflow_block_specs(replace(PRIORS["nas-fpn"], attention=Attention("avg", "finer")), 256, "bn")
