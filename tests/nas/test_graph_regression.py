"""The regression behind the tabular benchmark: its shortcuts change nothing."""

from pathlib import Path

import numpy as np
import pytest

from nas.graph_regression import fitted, fitted_once, out_of_fold, predict


@pytest.fixture(scope="module")
def known() -> tuple[np.ndarray, np.ndarray]:
    stream = np.random.default_rng(0)
    features = stream.normal(size=(120, 6))
    return features, features[:, 0] + 0.5 * features[:, 1] * features[:, 2] + 0.1 * stream.normal(size=120)


def test_predictions_are_the_mean_of_what_both_kinds_of_trees_say(known) -> None:
    regression = fitted(*known)
    new = np.random.default_rng(1).normal(size=(30, 6))
    wanted = np.mean([model.predict(new) for model in regression], axis=0)
    np.testing.assert_allclose(predict(regression, new), wanted, rtol=1e-12)
    one_by_one = [predict(regression, row[None])[0] for row in new]
    np.testing.assert_allclose(one_by_one, wanted, rtol=1e-12)


def test_a_kept_regression_predicts_the_same_and_is_not_fitted_again(
    known, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NAS_CACHE", str(tmp_path))
    wanted = predict(fitted(*known), known[0])
    np.testing.assert_array_equal(predict(fitted_once("test", *known), known[0]), wanted)
    monkeypatch.setattr("nas.graph_regression.fitted", None)
    np.testing.assert_array_equal(predict(fitted_once("test", *known), known[0]), wanted)


def test_predictions_out_of_fold_have_not_seen_what_they_predict(known) -> None:
    """Pure noise cannot be predicted out of fold, though it can be within."""
    features = known[0]
    noise = np.random.default_rng(2).normal(size=len(features))
    assert np.corrcoef(predict(fitted(features, noise), features), noise)[0, 1] > 0.8
    assert np.corrcoef(out_of_fold(features, noise), noise)[0, 1] < 0.3
