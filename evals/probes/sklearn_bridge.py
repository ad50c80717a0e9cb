"""Everything that needs scikit-learn: the digits, two classical classifiers, t-SNE. No other file imports it."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray


class Predictions(NamedTuple):
    """``labels`` int64 ``[Q]``: the class predicted for every query; ``probabilities`` float64 ``[Q, C]``."""

    labels: NDArray[np.int64]
    probabilities: NDArray[np.float64]


def digit_images() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """scikit-learn's 1,797 handwritten digits: images uint8 ``[1797, 8, 8]`` in 0..255 and labels int64 ``[1797]``.

    Source: the UCI "Optical Recognition of Handwritten Digits" test set, shipped with scikit-learn (no download). The
    original has 17 grey levels, 0 to 16.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images * (255.0 / 16.0)).astype(np.uint8)
    return images, digits.target.astype(np.int64)


class _Model(Protocol):
    """What scikit-learn's classifiers have in common."""

    classes_: NDArray[np.int64]

    def predict_proba(self, queries: NDArray[np.float32], /) -> NDArray[np.float64]: ...


class Classifier(NamedTuple):
    """A fitted model of scikit-learn that answers queries ``[Q, D]``."""

    model: _Model
    num_classes: int

    def __call__(self, queries: NDArray[np.float32]) -> Predictions:
        """Classes that the training part lacks get probability 0, so that columns are class numbers."""
        full = np.zeros((len(queries), self.num_classes))
        full[:, self.model.classes_] = self.model.predict_proba(queries)
        return Predictions(full.argmax(axis=1).astype(np.int64), full)


def logistic(
    features: NDArray[np.float32], labels: NDArray[np.int64], num_classes: int, penalty: float = 1.0,
    max_steps: int = 2000,
) -> Classifier:  # fmt: skip
    """Multinomial logistic regression, L2-penalised, solved to convergence by L-BFGS.

    ``features`` ``[K, D]`` with ``labels`` ``[K]`` in 0..num_classes-1. ``penalty`` is lambda in
    ``sum of losses + lambda/2 |W|^2`` (scikit-learn's ``C`` is its inverse).
    """
    from sklearn.linear_model import LogisticRegression

    # with few clips or a weak penalty, looser bounds change answers (1e-3: 17 % of 30 test clips, of 72 to learn from),
    # and single precision stops short of this one
    model = LogisticRegression(C=1.0 / penalty, max_iter=max_steps, tol=1e-5)
    return Classifier(model.fit(features.astype(np.float64), labels), num_classes)


def knn(features: NDArray[np.float32], labels: NDArray[np.int64], num_classes: int, neighbours: int = 10) -> Classifier:
    """Vote of the nearest neighbours by cosine distance, weighted by inverse distance. Shapes as in ``logistic``."""
    from sklearn.neighbors import KNeighborsClassifier

    neighbours = min(neighbours, len(features))
    model = KNeighborsClassifier(n_neighbors=neighbours, metric="cosine", weights="distance")
    return Classifier(model.fit(features, labels), num_classes)


def tsne(features: NDArray[np.float32], seed: int = 0) -> NDArray[np.float32]:
    """Places ``[K, 2]`` of features ``[K, D]`` in the plane that keep neighbours (by cosine) together.

    L. van der Maaten and G. Hinton, "Visualizing Data using t-SNE", JMLR 2008, started from the principal components.
    Perplexity 30, less for fewer than 91 rows. Needs at least 4 rows.
    """
    from sklearn.manifold import TSNE

    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    unit = features / np.where(lengths > 0, lengths, 1)  # of unit vectors, Euclidean neighbours are those by cosine
    model = TSNE(perplexity=min(30.0, (len(features) - 1) / 3), init="pca", random_state=seed)
    return model.fit_transform(unit).astype(np.float32)
