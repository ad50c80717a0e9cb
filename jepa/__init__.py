"""JEPA toolkit: ``load`` a trained encoder, ``encode`` images and videos with it.

>>> import jepa
>>> model = jepa.load("runs/demo")
>>> features = jepa.encode("film.mp4", model)  # features.tokens [B, N, D], .pooled() [B, D], .maps() [B, t, h, w, D]
"""

# Not lazy: `encode`, `predict` and `surprise` share their names with their modules, and what is bound last wins.
from jepa.encode import encode, encode_stream
from jepa.features import Features, open_features
from jepa.load import load
from jepa.models.encoder import Encoder
from jepa.predict import Prediction, predict
from jepa.predictive import Predictive, load_predictive
from jepa.pretrained import list_models, load_pretrained
from jepa.streaming import encode_files
from jepa.surprise import surprise
from jepa.surprise_curve import SurpriseCurve
from jepa.world_model import load_world_model

__all__ = [
    "Encoder",
    "Features",
    "Prediction",
    "Predictive",
    "SurpriseCurve",
    "encode",
    "encode_files",
    "encode_stream",
    "list_models",
    "load",
    "load_predictive",
    "load_pretrained",
    "load_world_model",
    "open_features",
    "predict",
    "surprise",
]
