import copy
import itertools
import json
from pathlib import Path

import pytest

from detector.architecture import NUM_LEVELS, PRIORS, Architecture, ArchitectureError, Attention, MergeCell

NAS_FPN = PRIORS["nas-fpn"]


def relabelled(graph: Architecture, order: tuple[int, ...], swap: bool) -> Architecture:
    """The same graph with its cells written in another order, and symmetric inputs perhaps swapped."""
    number = {NUM_LEVELS + old: NUM_LEVELS + new for new, old in enumerate(order)}
    levels, cells = graph.feature_levels, []
    for old in order:
        cell = graph.cells[old]
        a, b = (number.get(i, i) for i in cell.inputs)
        if swap and (cell.op == "sum" or levels[cell.inputs[0]] != levels[cell.inputs[1]]):
            a, b = b, a
        cells.append(MergeCell((a, b), cell.level, cell.op))
    return Architecture(tuple(cells), graph.repeats, graph.attention)


def valid_orders(graph: Architecture) -> list[tuple[int, ...]]:
    """By brute force: intermediates first, and every cell after the cells it reads."""
    split = graph.num_intermediate
    orders = []
    for first in itertools.permutations(range(split)):
        for last in itertools.permutations(range(split, len(graph.cells))):
            order = first + last
            placed = {NUM_LEVELS + old: place for place, old in enumerate(order)}
            if all(placed.get(i, -1) < placed[NUM_LEVELS + o] for o in order for i in graph.cells[o].inputs):
                orders.append(order)
    return orders


def test_leaves_of_the_published_graph_are_p5_and_p7() -> None:
    assert NAS_FPN.leaves == (2, 4)
    assert [NAS_FPN.leaves_into(i) for i in range(7)] == [(), (), (), (), (2,), (4,), ()]


def test_output_order_of_the_published_graph() -> None:
    assert [cell.level for cell in NAS_FPN.cells[-5:]] == [3, 4, 5, 7, 6]


def test_canonical_form_and_hash_are_those_of_every_isomorphic_graph(random_graphs) -> None:
    for graph in [NAS_FPN, PRIORS["fpn"], *random_graphs(25)]:
        orders = valid_orders(graph)
        for order, swap in itertools.product(orders[:: max(1, len(orders) // 8)], (False, True)):
            other = relabelled(graph, order, swap)
            assert other.canonical() == graph.canonical()
            assert other.hash == graph.hash


def test_canonical_form_is_the_smallest_of_all_orders(random_graphs) -> None:
    def serialised(graph: Architecture) -> list[tuple[tuple[int, int], int, str]]:
        return [(cell.inputs, cell.level, cell.op) for cell in graph.cells]

    for graph in random_graphs(20):
        forms = [serialised(relabelled(graph, order, swap)) for order in valid_orders(graph) for swap in (False, True)]
        assert serialised(graph.canonical()) <= min(forms)
        assert graph.canonical().canonical() == graph.canonical()


def test_twin_cells_have_one_canonical_form() -> None:
    """Two intermediates that look the same and are used differently: a greedy choice alone would depend on order."""
    twin, rest = MergeCell((0, 1), 3, "sum"), NAS_FPN.cells[2:]
    graph = Architecture((twin, twin, *rest))
    assert relabelled(graph, (1, 0, 2, 3, 4, 5, 6), False).canonical() == graph.canonical()


def test_hash_tells_different_networks_apart() -> None:
    def variant(**changes) -> str:
        return Architecture(NAS_FPN.cells, **changes).hash

    swapped_tie = (MergeCell((5, 1), 4, "attention"), MergeCell((1, 5), 4, "attention"))
    ties = [Architecture((NAS_FPN.cells[0], cell, *NAS_FPN.cells[2:])).hash for cell in swapped_tie]
    hashes = [NAS_FPN.hash, variant(repeats=2), variant(attention=Attention("avg")), PRIORS["fpn"].hash, *ties]
    hashes.append(variant(attention=Attention("max", "finer")))
    assert len(set(hashes)) == len(hashes)


def test_file_round_trip_keeps_written_order_and_origin(tmp_path: Path, random_graphs) -> None:
    for graph in [NAS_FPN, *random_graphs(5)]:
        graph = Architecture(graph.cells, 3, Attention("avg", "finer"), {"episode": 7})
        path = tmp_path / "best.json"
        path.write_text(json.dumps(graph.to_dict()))
        loaded = Architecture.load(path)
        assert loaded == graph
        assert loaded.found == {"episode": 7}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(format="x"), "format: 'x' given"),
        (lambda d: d.update(version=2), "version: 2 given"),
        (lambda d: d.update(levels=[2, 3, 4, 5, 6]), "levels"),
        (lambda d: d.update(extra=1), "unknown key 'extra'"),
        (lambda d: d.pop("cells"), "key 'cells' is missing"),
        (lambda d: d.update(cells={}), "cells: dict given"),
        (lambda d: d.update(cells=d["cells"][:4]), "cells: 4 given, at least 5"),
        (lambda d: d.update(repeats=0), "repeats: 0 given"),
        (lambda d: d.update(repeats=True), "repeats: True given"),
        (lambda d: d.update(found=3), "found: 3 given"),
        (lambda d: d.update(attention={"pool": "sum"}), "attention: pool 'sum' given"),
        (lambda d: d.update(attention={"gate": "left"}), "attention: gate 'left' given"),
        (lambda d: d.update(attention={"kind": "x"}), "attention: unknown key 'kind'"),
        (lambda d: d["cells"][3].update(op="max"), "cell 3: op 'max' given"),
        (lambda d: d["cells"][3].update(level=8), "cell 3: level 8 given"),
        (lambda d: d["cells"][3].update(level="4"), "cell 3: level '4' given"),
        (lambda d: d["cells"][2].update(inputs=[0, 7]), "cell 2: input 7 does not exist there; features 0..6"),
        (lambda d: d["cells"][2].update(inputs=[-1, 3]), "cell 2: input -1"),
        (lambda d: d["cells"][2].update(inputs=[3, 3]), "cell 2: both inputs are 3"),
        (lambda d: d["cells"][2].update(inputs=[3]), "cell 2: inputs [3] given, must be two"),
        (lambda d: d["cells"][2].update(weight=3), "cell 2: unknown key 'weight'"),
        (lambda d: d["cells"][2].pop("op"), "cell 2: key 'op' is missing"),
        (lambda d: d["cells"].__setitem__(1, 5), "cell 1: 5 given, must be an object"),
        (lambda d: d["cells"][6].update(level=7), "cell 6: output level 7 is already the output of cell 5"),
    ],
)
def test_each_broken_rule_is_named(tmp_path: Path, change, message: str) -> None:
    content = copy.deepcopy(NAS_FPN.to_dict())
    change(content)
    path = tmp_path / "broken.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ArchitectureError) as error:
        Architecture.load(path)
    assert message in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"{", b"[1, 2]", b"\xff\xfe\x00"])
def test_files_that_are_no_graphs_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "no.json"
    path.write_bytes(content)
    with pytest.raises(ArchitectureError, match=r"no\.json"):
        Architecture.load(path)
    with pytest.raises(ArchitectureError, match="cannot be read"):
        Architecture.load(tmp_path / "absent.json")


def test_alignment_finds_the_written_order_again(random_graphs) -> None:
    for graph in random_graphs(30):
        aligned = graph.canonical().aligned_with(graph)
        assert aligned.hash == graph.hash
        for ours, theirs in zip(aligned.cells, graph.cells, strict=True):
            assert (sorted(ours.inputs), ours.level, ours.op) == (sorted(theirs.inputs), theirs.level, theirs.op)
    assert PRIORS["fpn"].aligned_with(PRIORS["nas-fpn"]) == PRIORS["fpn"].canonical()
