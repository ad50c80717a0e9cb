"""Settings of single tasks (anticipation, retrieval, tracking, ...), and of the clips that all see.

On the command line ``jepa eval MODEL --task TASK --set TASK.KEY=VALUE``.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_args

from jepa.config import ConfigError
from jepa.job import EncodeOptions
from jepa.models.base import ClipEncoder
from jepa.models.encoder import Encoder
from jepa.planning.config import PlannerConfig
from jepa.planning.energy import EnergyConfig
from jepa.types import Fit

Degrade = Literal["crop", "noise", "brightness", "shift", "combined"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipChanges:
    """What is different from the models' own clips; None: nothing. ``num_frames`` and ``crop_size`` must suit the
    models' tubelets and patches; a ``short_side`` grows along with ``crop_size``. ``fps`` (frames per second) or
    ``frame_step`` (every n-th frame of the file) replaces the models' rate.

    Holds for models of this toolkit and published JEPAs, those of ``against`` too. The clip of timm models is said in
    their names (``timm:NAME?frames=8&fps=4&size=224``): they are refused as the model of the eval, and keep theirs in
    ``against``.
    """

    num_frames: int | None = None
    fps: float | None = None
    frame_step: int | None = None
    crop_size: int | None = None
    fit: Fit | None = None

    def __post_init__(self) -> None:
        if self.fps is not None and self.frame_step is not None:
            raise ValueError(f"set one of fps and frame_step, not both ({self.fps:g} and {self.frame_step})")

    def __bool__(self) -> bool:
        return any(getattr(self, f.name) is not None for f in fields(self))

    def apply(self, encoder: ClipEncoder, name: str) -> ClipEncoder:
        """``encoder`` with its clip and token grid changed. Raises ``ConfigError`` for one that refuses this clip."""
        if not self:
            return encoder
        if not isinstance(encoder, Encoder):
            raise ConfigError(f"clip cannot be changed for {name}: say it in the name, as timm:NAME?frames=8&size=224")
        asked = EncodeOptions(
            num_frames=self.num_frames, clip_fps=self.fps, crop_size=self.crop_size, fit=self.fit
        )  # fmt: skip
        clip = asked.clip_of(encoder)
        if self.frame_step is not None:
            clip = replace(clip, frame_step=self.frame_step, fps=None, duration_s=None)
        shape = (encoder.config.in_channels, clip.num_frames, clip.crop_size, clip.crop_size)
        try:
            encoder.grid = encoder.grid_of(shape)
        except ValueError as error:
            raise ConfigError(f"clip does not suit {name}: {error}") from None
        encoder.clip = clip
        return encoder


@dataclass(frozen=True, kw_only=True, slots=True)
class AnticipationConfig:
    """Clips end ``anticipation_s`` seconds before the action that is to be named.

    ``predict``: the model's predictor adds the tokens of the tubelet in which the action starts, behind those of the
    clip, as in V-JEPA 2 (arXiv 2506.09985, section on action anticipation); models without such a predictor show the
    clip alone, and the results say so. ``mask_token``: which of the predictor's mask tokens stands there.
    """

    anticipation_s: float = 1.0
    predict: bool = True
    mask_token: int = 0

    def __post_init__(self) -> None:
        if self.anticipation_s < 0:
            raise ValueError(f"anticipation.anticipation_s must be at least 0 seconds, not {self.anticipation_s}")
        if self.mask_token < 0:
            raise ValueError(f"anticipation.mask_token must be at least 0, not {self.mask_token}")


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


@dataclass(frozen=True, kw_only=True, slots=True)
class LatentActionTask:
    """``clips``: about so many, evenly over the test videos. ``labels``: with how many true actions the inferred ones
    are read, in ``draws`` draws. ``axes``: which two of the true actions' axes make the plane of their directions."""

    clips: int = 256
    labels: tuple[int, ...] = (10, 30, 100)
    draws: int = 3
    axes: tuple[int, int] = (0, 1)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.clips < 2 or self.draws < 1:
            raise ValueError(f"latent_action.clips must be at least 2 and draws at least 1: {self.clips}, {self.draws}")
        if not self.labels or min(self.labels) < 2:
            raise ValueError(f"latent_action.labels must be numbers of at least 2, not {list(self.labels)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class WorldModelTask:
    """``horizons``: how many steps ahead (empty: 1, 2, 4, ... as far as half of the test episodes go, up to 64), after
    ``context`` given frames (None: as many as the run's own rollouts began from, else 1), in up to ``windows`` windows
    of every test episode; errors by ``measure``. At most ``test_episodes`` are reported on, and ``fit_episodes`` teach
    the readout of states. ``seed``: of splits, planners and the starts and goals of episodes.

    ``env``: also act there, with ``env_options``, in ``episodes`` episodes of at most ``max_steps`` (None: until the
    environment ends them), by ``planner`` and ``energy``; beside the ``agents``.
    """

    horizons: tuple[int, ...] = ()
    context: int | None = None
    windows: int = 4
    measure: Literal["l1", "mse"] = "l1"
    test_episodes: int = 128
    fit_episodes: int = 256
    env: str | None = None
    env_options: dict[str, Any] = field(default_factory=dict)
    episodes: int = 50
    max_steps: int | None = None
    planner: PlannerConfig = field(default_factory=PlannerConfig)
    energy: EnergyConfig = field(default_factory=EnergyConfig)
    agents: tuple[Literal["random", "simulator"], ...] = ("random", "simulator")
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"windows": 1, "test_episodes": 2, "fit_episodes": 2, "episodes": 1, "context": 1, "max_steps": 1}
        for name, value in least.items():
            given = getattr(self, name)
            if given is not None and given < value:
                raise ValueError(f"world_model.{name} must be at least {value}, not {given}")
        if min(self.horizons, default=1) < 1:
            raise ValueError(f"world_model.horizons must be at least 1 step, not {list(self.horizons)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ReconstructionTask:
    """A decoder of ``embed_dim``, ``depth`` and ``num_heads`` is fitted in ``steps`` steps of ``batch_size`` clips to
    the latents of ``train_clips`` clips, and judged on ``test_clips``, evenly over the sources; weights, batches and
    masks are drawn by ``seed``. ``loss``: "mse", whose best answer is the mean of what may be there, as PSNR wants it,
    or "l1", the median. ``latent_noise``: what decoders are shown in training is as noisy as this
    (``PixelDecoderConfig``), so that predicted latents come out better, and true ones worse. ``pools``: also on
    latents averaged over so many rows and columns (fewer tokens).

    What is predicted: of ``places`` "masked", those hidden by the model's own masks, of the family ``mask_token``, and
    "forecast", all that follows the share ``context`` of a clip (with the mask token of the model's first causal
    family, where it has one). The random encoder's predictor is trained for ``predictor_steps``.
    ``pictures``: test clips that are drawn in the report.

    ``samples`` of 2 or more: beside it a generative decoder of the same size is fitted to the same latents in
    ``flow_steps`` steps, and draws so many samples of every test clip, each in ``sampling_steps`` steps from noise
    under ``guidance`` (1: as learned); 0: none.
    """

    train_clips: int = 1024
    test_clips: int = 128
    embed_dim: int = 128
    depth: int = 2
    num_heads: int = 4
    steps: int = 600
    predictor_steps: int = 600
    batch_size: int = 16
    learning_rate: float = 3e-3
    loss: Literal["mse", "l1"] = "mse"
    latent_noise: float = 0.0
    pools: tuple[int, ...] = ()
    places: tuple[Literal["masked", "forecast"], ...] = ("masked", "forecast")
    mask_token: int = 0
    context: float = 0.5
    pictures: int = 4
    samples: int = 0
    flow_steps: int = 1200
    sampling_steps: int = 8
    guidance: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        least = {
            "train_clips": 2, "test_clips": 2, "embed_dim": 1, "depth": 1, "num_heads": 1, "steps": 1, "batch_size": 1,
            "predictor_steps": 1, "mask_token": 0, "pictures": 0, "flow_steps": 1, "sampling_steps": 1, "guidance": 0,
            "latent_noise": 0,
        }  # fmt: skip
        for name, value in least.items():
            if getattr(self, name) < value:
                raise ValueError(f"reconstruction.{name} must be at least {value}, not {getattr(self, name)}")
        if self.samples != 0 and self.samples < 2:
            raise ValueError(f"reconstruction.samples must be 0 (no samples) or at least 2, not {self.samples}")
        if not self.places:
            raise ValueError("reconstruction.places is empty: name masked, forecast or both")
        if min(self.pools, default=2) < 2:
            raise ValueError(f"reconstruction.pools must be at least 2 rows and columns, not {list(self.pools)}")
        if not 0 < self.context < 1 or self.learning_rate <= 0:
            raise ValueError(
                "reconstruction.context is a share of the clip and learning_rate positive, not "
                f"{self.context:g} and {self.learning_rate:g}"
            )
