"""Neural networks: encoder, predictor and their parts."""

from jepa.models.encoder import Encoder, EncoderConfig, Position
from jepa.models.predictor import Predictor, PredictorConfig
from jepa.models.sizes import SIZES, Size

__all__ = ["SIZES", "Encoder", "EncoderConfig", "Position", "Predictor", "PredictorConfig", "Size"]
