"""Published checkpoints: their table, their download, and the importers of their layouts."""

from jepa.pretrained.loader import Pretrained, load_pretrained
from jepa.pretrained.zoo import PublishedModel, find_model, list_models

__all__ = ["Pretrained", "PublishedModel", "find_model", "list_models", "load_pretrained"]
