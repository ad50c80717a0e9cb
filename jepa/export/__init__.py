"""Models for other programs: ``transformers`` and safetensors folders, ONNX and ``torch.export`` graphs, cards."""

from jepa.export.run import FORMATS, export

__all__ = ["FORMATS", "export"]
