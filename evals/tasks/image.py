"""Frozen classification of still pictures: the same as of videos, for sources of pictures.

A video encoder sees a picture held for its whole clip, as ``jepa.encode`` shows it; ``clip.num_frames=1`` makes it a
clip of one frame, for encoders that have weights of their own for pictures.
"""

from __future__ import annotations

import os

from evals.labelled import Labelled
from evals.settings import EvalConfig, TaskResult
from evals.tasks.video import classify_videos
from jepa.config import ConfigError
from jepa.data.image import IMAGE_SUFFIXES


def classify_images(config: EvalConfig) -> TaskResult:
    """Probe the encoders and the baselines. Raises ``ConfigError`` for videos among the pictures, and for segments."""
    if config.segments != 1:
        raise ConfigError(f"a picture is a single clip: set segments to 1, not {config.segments}, for the task image")
    return classify_videos(config, check=check_stills)


def check_stills(split: Labelled) -> None:
    """Raise ``ConfigError`` naming the first item that is no picture."""
    source = split.source
    if source.arrays is not None and source.arrays.shape[1] > 1:
        raise ConfigError(
            f"{source.config.path} holds clips of {source.arrays.shape[1]} frames, not pictures: use --task video"
        )
    if source.arrays is not None:
        return
    for path in source.paths:
        if os.path.splitext(path)[1].lower() not in IMAGE_SUFFIXES:
            raise ConfigError(f"{path} is no picture: use --task video for videos, or keep them out of the source")
