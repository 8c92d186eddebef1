import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.decisions import uniform
from detector.architecture import PRIORS, Architecture, Attention
from detector.errors import UserError
from nas.space import NasFpnSpace, load_prior, space_around


@given(st.integers(0, 2**32 - 1), st.sampled_from(["nas-fpn", "fpn"]))
def test_every_masked_sequence_is_a_valid_graph_and_back(seed: int, prior: str) -> None:
    space = space_around(PRIORS[prior])
    decisions = uniform(space, np.random.default_rng(seed))
    assert space.decisions(space.architecture(decisions)) == decisions


def test_every_choice_that_a_mask_forbids_breaks_a_rule() -> None:
    space, stream = space_around(PRIORS["nas-fpn"]), np.random.default_rng(0)
    for _ in range(20):
        decisions = uniform(space, stream)
        for t in range(len(decisions)):
            for wrong in np.flatnonzero(~space.mask(decisions[:t])):
                changed = (*decisions[:t], int(wrong), *decisions[t + 1 :])
                with pytest.raises(ValueError, match="cell"):
                    space.architecture(changed)


def test_priors_lie_in_their_spaces_with_their_convention_and_repeats() -> None:
    graph = Architecture(PRIORS["nas-fpn"].cells, 2, Attention("avg", "finer"))
    space = space_around(graph)
    assert space.architecture(space.decisions(graph)) == graph


def test_size_of_the_published_space() -> None:
    """Ordered input pairs: the field's 3.0e15 counts unordered ones, a factor 2 for each of 7 cells."""
    space, total = NasFpnSpace(PRIORS["nas-fpn"]), 1
    decisions = space.decisions(PRIORS["nas-fpn"])
    for t in range(len(decisions)):
        total *= int(space.mask(decisions[:t]).sum())
    assert total == 3_017_710_080_000_000 * 2**7


def test_priors_by_name_file_or_none(tmp_path) -> None:
    assert load_prior("none") is None
    assert load_prior("fpn") == PRIORS["fpn"]
    with pytest.raises(UserError, match=r"prior absent\.json: .*give a file, none, or one of: nas-fpn, fpn"):
        load_prior("absent.json")
