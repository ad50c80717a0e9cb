"""Settings of the tasks that fit no classifier on clips: retrieval, tracking, dense prediction.

On the command line ``jepa eval MODEL --task TASK --set TASK.KEY=VALUE``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Degrade = Literal["crop", "noise", "brightness", "shift", "combined"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RetrievalConfig:
    """``protocol``: "test_to_train" (queries are the test clips, the gallery the training clips) or "leave_one_out"
    (every test clip is a query among the other test clips). ``recall_at``: how many answers are looked at.
    ``standardise``: every dimension of the vectors to mean 0 and standard deviation 1 over the gallery, before the
    cosine. ``copies``: degradations for copy detection, a line of the table each; empty: no copy detection."""

    protocol: Literal["test_to_train", "leave_one_out"] = "test_to_train"
    recall_at: tuple[int, ...] = (1, 5, 10)
    standardise: bool = False
    copies: tuple[Degrade, ...] = get_args(Degrade)
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.recall_at or min(self.recall_at) < 1:
            raise ValueError(f"retrieval.recall_at must be numbers of at least 1, not {self.recall_at}")
        unknown = sorted(set(self.copies) - set(get_args(Degrade)))
        if unknown:
            raise ValueError(f"retrieval.copies: {unknown[0]!r} is unknown; known: {', '.join(get_args(Degrade))}")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackingConfig:
    """Label propagation with the settings of DINO (arXiv 2104.14294, section 4.2.2 and the code that it follows).

    A patch's mask is the mean of those of its ``top_k`` most similar patches, at most ``radius`` rows and columns away,
    in the first frame and the ``context`` frames before, weighted by the softmax of cosine / ``temperature``.
    ``sharpen``: every object's mask is stretched to 0..1 before pixels are given to objects.

    ``frames``: "single" (every frame is a clip of one frame), "tubelets" (a video model sees consecutive frames; all
    frames of a tubelet get its mask) or "auto": tubelets where the model's tubelets have several frames. ``fit``:
    "keep" scales the shorter side to ``side`` pixels and both to whole patches; "stretch" makes the model's own square.
    """

    top_k: int = 5
    temperature: float = 0.1
    radius: int = 12
    context: int = 7
    sharpen: bool = True
    frames: Literal["auto", "single", "tubelets"] = "auto"
    side: int = 480
    fit: Literal["keep", "stretch"] = "keep"
    split: str = "val"

    def __post_init__(self) -> None:
        for name, least in (("top_k", 1), ("radius", 0), ("context", 0), ("side", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"tracking.{name} must be at least {least}, not {getattr(self, name)}")
        if self.temperature <= 0:
            raise ValueError(f"tracking.temperature must be positive, not {self.temperature}")


@dataclass(frozen=True, kw_only=True, slots=True)
class DenseConfig:
    """``target``: "segmentation" (class numbers in ``masks/STEM.png``) or "depth" (``depth/STEM.npy`` in metres, or
    16-bit ``STEM.png`` of which one step is ``depth_scale`` metres). ``labels``: another name for that folder.

    ``ignore``: the class number of pixels without a class. ``zero_is_ignored``: 0 means no class, and class 1 becomes
    the first (ADE20K's scene-parsing benchmark). ``num_classes``: None takes the largest number in the training masks.
    Depths that are not finite or not above 0, or above ``max_depth``, are not measured. ``side``: side of the square
    that images are stretched to, and ``num_frames`` for which they are held (None: those of the model's clip).
    ``pixels`` labelled pixels of each of ``images`` images make a training step.
    """

    target: Literal["segmentation", "depth"] = "segmentation"
    labels: str | None = None
    ignore: int = 255
    zero_is_ignored: bool = False
    num_classes: int | None = None
    depth_scale: float | None = None
    max_depth: float | None = None
    side: int | None = None
    num_frames: int | None = None
    images: int = 16
    pixels: int = 256

    def __post_init__(self) -> None:
        for name in ("num_classes", "depth_scale", "max_depth", "side", "num_frames", "images", "pixels"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"dense.{name} must be positive, not {value}")

    @property
    def folder(self) -> str:
        """Name of the folder that the labels lie in, beside ``images``."""
        return self.labels or ("masks" if self.target == "segmentation" else "depth")
