"""A graph as numbers, for regression: equal for isomorphic graphs."""

import math

import numpy as np
from numpy.typing import NDArray

from detector.architecture import LEVELS, NUM_LEVELS, Architecture


def graph_features(architecture: Architecture) -> NDArray[np.float64]:
    """(F,): what reaches each output from each of the FPN's levels, and how; and what the cells are.

    For every pair of input and output level: the number of paths (log), the least number of cells on a path, the
    coarsest level that its least coarse path goes through (finer detail is lost there), and the least number of
    attention cells. For every output: its operation, and the levels that it merges. Counts of levels, operations and
    leaves.
    """
    graph = architecture.canonical()
    levels = graph.feature_levels
    no_path = float(len(levels))  # longer and coarser than any path is
    paths = np.zeros((len(levels), NUM_LEVELS))
    least = np.full((len(levels), 3, NUM_LEVELS), no_path)  # cells, coarsest level and attention cells on a path
    for i, level in enumerate(LEVELS):
        paths[i, i] = 1.0
        least[i, :, i] = 0.0, level, 0.0
    of_outputs: list[tuple[int, list[float]]] = []
    for index, cell in enumerate(graph.cells):
        place = NUM_LEVELS + index
        sources = [*cell.inputs, *graph.leaves_into(index)]
        is_gated = float(cell.op == "attention")
        paths[place] = paths[sources].sum(axis=0)
        depth, coarsest, gates = least[sources].min(axis=0)
        least[place] = depth + 1, np.maximum(coarsest, cell.level), gates + is_gated
        if index >= graph.num_intermediate:
            merged = sorted(levels[source] for source in cell.inputs)
            of_outputs.append((cell.level, [is_gated, *merged, float(len(sources) - 2), float(index)]))
    outputs = [NUM_LEVELS + graph.num_intermediate + place for place in np.argsort([o[0] for o in of_outputs])]
    tables = (np.log1p(paths[outputs]), *(least[outputs, part] for part in range(3)))
    reach = [np.minimum(table, no_path) for table in tables]
    between = [cell.level for cell in graph.cells[: graph.num_intermediate]]
    counts = [float(between.count(level)) for level in LEVELS]
    steps = [abs(levels[s] - c.level) for c in graph.cells for s in c.inputs]
    totals = [
        float(sum(cell.op == "attention" for cell in graph.cells)),
        float(len(graph.leaves)),
        float(sum(steps)),
        float(max(steps)),
        math.log(sum(4.0 ** -(cell.level - LEVELS[0]) for cell in graph.cells)),
    ]
    described = [value for _, values in sorted(of_outputs) for value in values]
    return np.array([*np.concatenate([table.ravel() for table in reach]), *described, *counts, *totals])
