"""From files to batches: readers, sources, sampling, mixing, loading, and the transform on the device."""

from jepa.data.loader import DataConfig, TrainLoader, eval_batches, eval_options, open_data
from jepa.data.sources import RawClip, ReadOptions, Source, SourceConfig, open_source
from jepa.data.transforms import AugmentConfig, ClipTransform
from jepa.data.video import VideoError, VideoReader, available_backends, open_video

__all__ = [
    "AugmentConfig", "ClipTransform", "DataConfig", "RawClip", "ReadOptions", "Source", "SourceConfig", "TrainLoader",
    "VideoError", "VideoReader", "available_backends", "eval_batches", "eval_options", "open_data", "open_source",
    "open_video",
]  # fmt: skip
