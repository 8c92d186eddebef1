"""Regression trees on features of graphs: what rewards to expect of graphs that were not measured."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detector.cache import build_once
from detector.errors import UserError

FOLDS = 10
FILE = "regression.joblib"


def fitted(features: NDArray[np.float64], means: NDArray[np.float64]) -> list[Any]:
    """Two kinds of regression trees, whose mean errs less than either. Raises UserError without scikit-learn."""
    _need_scikit_learn()
    from sklearn.ensemble import ExtraTreesRegressor, HistGradientBoostingRegressor

    return [
        ExtraTreesRegressor(300, min_samples_leaf=2, max_features=0.4, random_state=0).fit(features, means),
        HistGradientBoostingRegressor(learning_rate=0.05, max_iter=300, l2_regularization=1.0, random_state=0).fit(
            features, means
        ),
    ]


def fitted_once(name: str, features: NDArray[np.float64], means: NDArray[np.float64]) -> list[Any]:
    """The same, kept in the cache: fitting takes seconds, in every process that wants it."""
    _need_scikit_learn()
    import joblib
    import sklearn

    def build(folder: Path) -> None:
        joblib.dump(fitted(features, means), folder / FILE)

    regression: list[Any] = joblib.load(build_once(f"{name}-scikit-learn-{sklearn.__version__}", build) / FILE)
    return regression


def _need_scikit_learn() -> None:
    try:
        import sklearn  # noqa: F401
    except ModuleNotFoundError as error:
        raise UserError("the tabular benchmark needs scikit-learn: pip install 'nas-detector[studies]'") from error


def predict(regression: Sequence[Any], features: NDArray[np.float64]) -> NDArray[np.float64]:
    forest, boosted = regression
    single = features.astype(np.float32)  # what its trees take
    trees = [tree.predict(single, check_input=False) for tree in forest.estimators_]  # its own way: 20 ms for one graph
    return np.asarray((np.mean(trees, axis=0) + boosted.predict(features)) / 2, dtype=np.float64)


def out_of_fold(features: NDArray[np.float64], means: NDArray[np.float64]) -> NDArray[np.float64]:
    """What is predicted of each graph by regressions that did not see it."""
    fold_of = np.random.default_rng(0).permutation(len(means)) % FOLDS
    predicted = np.empty_like(means)
    for fold in range(FOLDS):
        held = fold_of == fold
        predicted[held] = predict(fitted(features[~held], means[~held]), features[held])
    return predicted
