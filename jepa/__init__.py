"""JEPA toolkit: ``load`` a trained encoder, ``encode`` images and videos with it.

>>> import jepa
>>> model = jepa.load("runs/demo")
>>> features = jepa.encode("film.mp4", model)  # features.tokens [B, N, D], .pooled() [B, D], .maps() [B, t, h, w, D]
"""

# Not lazy: the function `encode` shares its name with its module, and whichever is bound last wins.
from jepa.encode import encode
from jepa.features import Features, open_features
from jepa.load import load
from jepa.models.encoder import Encoder
from jepa.pretrained import list_models, load_pretrained

__all__ = ["Encoder", "Features", "encode", "list_models", "load", "load_pretrained", "open_features"]
