"""Pictures of graphs: what they say, not how they look."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from controller.decisions import mutate
from detector.architecture import LEVELS, NUM_LEVELS, PRIORS, Architecture, MergeCell
from detector.errors import UserError
from nas.drawing import changes, check_picture, draw, edges, positions, text
from nas.space import space_around

PRIOR = PRIORS["nas-fpn"]


def changed_prior() -> Architecture:
    """The prior with another op in cell 2 and another input of cell 5."""
    decisions = list(space_around(PRIOR).decisions(PRIOR))
    decisions[4 * 2 + 3], decisions[4 * 5] = 1, 2
    return space_around(PRIOR).architecture(decisions)


def test_changes_are_those_made_whatever_the_order_of_cells() -> None:
    graph = changed_prior().canonical().aligned_with(PRIOR)
    found = changes(graph, PRIOR)
    assert found.cells == {2}
    assert found.inputs == {(5, 2)}
    assert not any(changes(PRIOR.canonical().aligned_with(PRIOR), PRIOR))
    assert not any(changes(PRIORS["fpn"], PRIOR)), "another number of cells cannot be compared"


def test_every_input_and_leaf_is_an_edge() -> None:
    drawn = list(edges(PRIOR, changes(PRIOR, None)))
    assert [(edge.source, edge.target) for edge in drawn if not edge.is_leaf] == [
        (source, 5 + index) for index, cell in enumerate(PRIOR.cells) for source in cell.inputs
    ]
    assert {(edge.source, edge.target) for edge in drawn if edge.is_leaf} == {(2, 9), (4, 10)}


def test_features_stand_at_their_levels_in_the_order_of_cells() -> None:
    places = positions(PRIOR)
    assert places[:, 1].tolist() == [LEVELS.index(level) for level in PRIOR.feature_levels]
    assert places[:, 0].tolist() == [0] * NUM_LEVELS + [1, 2, 3, 4, 5, 6, 7]


def test_text_shows_outputs_ops_inputs_and_changes() -> None:
    lines = text(changed_prior().canonical(), PRIOR).splitlines()
    assert lines[0].split() == ["cell", *(f"#{i}" for i in range(7))]
    assert lines[5].split() == ["P3", "o", ".", ".", "[A*]", ".", ".", ".", "."]
    assert lines[6].split() == ["inputs", "P4", "P4", "P3", "#1", "#2", "P5*", "#4"]
    assert lines[8].split() == ["leaves", "P7"]
    assert "*" not in text(PRIOR, PRIOR)


def test_text_follows_the_prior_s_order_whatever_order_the_graph_is_in() -> None:
    space, stream = space_around(PRIOR), np.random.default_rng(0)
    graphs = [space.architecture(mutate(space, space.decisions(PRIOR), 3, stream)) for _ in range(12)]
    assert any(graph.canonical().cells != graph.aligned_with(PRIOR).cells for graph in graphs)
    for graph in graphs:
        assert text(graph.canonical(), PRIOR) == text(graph.aligned_with(PRIOR), PRIOR)


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_pictures_of_any_number_of_cells(tmp_path: Path, suffix: str) -> None:
    inner = tuple(MergeCell((i, i + 1), 3 + i % 5, "attention") for i in range(7))
    large = Architecture(inner + tuple(MergeCell((0, 5 + i), level, "sum") for i, level in enumerate(LEVELS)))
    for graph in (PRIOR, large):
        draw(graph, tmp_path / f"a{suffix}", PRIOR, "title")
        if suffix == ".png":
            pixels = np.array(Image.open(tmp_path / "a.png").convert("RGB"))
            assert pixels.shape[1] > 900
            assert (pixels == (0xCF, 0xE3, 0xF5)).all(2).sum() > 5 * 1000, "five filled outputs"
        else:
            assert (tmp_path / "a.svg").read_text().count("<path") > 20


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ends in \.svg or \.png"):
        check_picture(Path("a.jpg"))
    with pytest.raises(UserError, match="cannot be written"):
        draw(PRIOR, tmp_path / "absent" / "a.png")
