import numpy as np

from evals import sklearn_bridge


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
        sklearn_bridge.logistic(features, labels, features, 4),
        sklearn_bridge.knn(features, labels, features, 4),
    ):
        assert fitted.probabilities.shape == (40, 4)
        assert (fitted.probabilities[:, [1, 3]] == 0).all()
        assert set(fitted.labels) <= {0, 2}
        np.testing.assert_allclose(fitted.probabilities.sum(axis=1), 1.0, rtol=1e-6)


def test_nearest_is_by_angle_not_by_length() -> None:
    bank = np.array([[1.0, 0.0], [0.0, 1.0], [10.0, 1.0]], dtype=np.float32)
    assert sklearn_bridge.nearest(bank, np.array([[5.0, 0.1]], dtype=np.float32), 2).tolist() == [[0, 2]]
