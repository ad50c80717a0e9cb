import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from evals.probes import sklearn_bridge


def test_digit_images() -> None:
    images, labels = sklearn_bridge.digit_images()
    assert images.shape == (1797, 8, 8)
    assert images.dtype == np.uint8
    assert (images.min(), images.max()) == (0, 255)
    assert labels.dtype == np.int64
    assert np.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_a_class_without_training_rows_gets_probability_zero() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 2], 20).astype(np.int64)
    features = (rng.normal(size=(40, 3)) + labels[:, None]).astype(np.float32)
    for fitted in (
        sklearn_bridge.logistic(features, labels, 4)(features),
        sklearn_bridge.knn(features, labels, 4)(features),
    ):
        assert fitted.probabilities.shape == (40, 4)
        assert (fitted.probabilities[:, [1, 3]] == 0).all()
        assert set(fitted.labels) <= {0, 2}
        np.testing.assert_allclose(fitted.probabilities.sum(axis=1), 1.0, rtol=1e-6)


@pytest.mark.parametrize("penalty", [0.1, 10.0])
def test_logistic_regression_ends_where_the_loss_is_flat(penalty: float) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(72) % 8
    features = (rng.normal(size=(72, 96)) + 0.7 * np.eye(8, 96)[labels]).astype(np.float32)
    fitted = sklearn_bridge.logistic(features, labels, 8, penalty)
    exact = LogisticRegression(C=1 / penalty, max_iter=20000, tol=1e-9).fit(features.astype(np.float64), labels)
    queries = rng.normal(size=(200, 96)).astype(np.float32)
    np.testing.assert_allclose(fitted(queries).probabilities, exact.predict_proba(queries), atol=0.01)


def test_tsne_keeps_clusters_by_direction_together() -> None:
    rng = np.random.default_rng(0)
    directions = np.repeat(np.eye(3, 8), 20, axis=0) + 0.05 * rng.normal(size=(60, 8))
    features = (directions * rng.uniform(0.1, 10, (60, 1))).astype(np.float32)  # lengths say nothing
    places = sklearn_bridge.tsne(features)
    assert places.shape == (60, 2)
    distances = np.linalg.norm(places[:, None] - places[None], axis=-1)
    nearest = np.argsort(distances, axis=1)[:, 1:6] // 20
    assert (nearest == np.arange(60)[:, None] // 20).all()
    np.testing.assert_array_equal(sklearn_bridge.tsne(features), places)
