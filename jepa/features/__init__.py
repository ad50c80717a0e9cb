"""What ``encode`` gives, in memory (``Features``) and on disk (``open_features``)."""

from jepa.features.features import Features, tubelet_times
from jepa.features.table import FeatureTable, open_features

__all__ = ["FeatureTable", "Features", "open_features", "tubelet_times"]
