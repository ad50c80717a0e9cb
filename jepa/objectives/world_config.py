"""Settings of the objective ``world_model``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from jepa.models.action_predictor import ActionPredictorConfig
from jepa.models.latent_head import LatentConfig
from jepa.models.pose import StateUpdate
from jepa.models.rope import RopeConfig
from jepa.models.timm_config import TimmConfig
from jepa.models.world_model import WorldConfig
from jepa.objectives.regularizers import RegularizerConfig
from jepa.schedules import RampKind
from jepa.types import ClipConfig

Measure = Literal["l1", "mse", "smooth_l1"]


@dataclass(frozen=True, kw_only=True, slots=True)
class FrozenConfig:
    """What a run wrote down about the encoder that ``encoder_from`` named: its own clip, and which model of timm it is
    (None: the ``encoder`` section says what it is)."""

    clip: ClipConfig
    timm: TimmConfig | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class WorldModelConfig:
    """``encoder_from``: a frozen encoder, anything that ``jepa.load`` takes; its config takes the place of the sections
    ``encoder`` and ``clip`` (but for the frames' number and rate). ``frozen`` is written by the run, not by hand.
    ``inherit_latent``: it is the run of a world model, whose ``latent`` and its weights are taken over, frozen, too.
    None: the encoder is trained along, and ``momentum`` (an EMA makes the targets; its momentum at the first and the
    last step), a ``regularizer`` on the latents (each frame's are one sample), or both keep it from collapsing.

    ``loss``: of predictions. ``rollout_steps``: so many steps are predicted from the ``rollout_context`` first frames
    and the model's own predictions (0: none; V-JEPA 2-AC: 2). The total is ``teacher_weight`` x teacher-forced error +
    ``rollout_weight`` x rollout error, and, as in PLDM (arXiv 2502.14819), ``inverse_weight`` x error of actions read
    from the latents of two successive frames + ``similarity_weight`` x mean squared change from frame to frame, which
    keeps latents smooth in what moves. ``within_weight`` x the regularizer's penalty on latents less the mean of their
    clip, in units of ``within_std``: without it, and without actions to read, latents that hold only what never
    changes within a clip are the easiest to predict. ``latent``, ``state_update``, ``window`` and ``residual``:
    ``jepa.models.world_model``. ``predictor``: its ``action_dim`` and ``state_dim`` are those of the data where they
    are left out; ``state_dim`` 0 leaves states out.
    """

    kind: Literal["world_model"] = "world_model"
    encoder_from: str | None = None
    inherit_latent: bool = False
    frozen: FrozenConfig | None = None
    momentum: tuple[float, float] | None = None
    momentum_schedule: RampKind = "linear"
    regularizer: RegularizerConfig | None = None
    loss: Measure = "l1"
    rollout_steps: int = 2
    rollout_context: int = 1
    teacher_weight: float = 1.0
    rollout_weight: float = 1.0
    inverse_weight: float = 0.0
    similarity_weight: float = 0.0
    within_weight: float = 0.0
    within_std: float = 0.5
    latent: LatentConfig = field(default_factory=LatentConfig)
    predictor: ActionPredictorConfig = field(default_factory=ActionPredictorConfig)
    rope: RopeConfig = field(default_factory=RopeConfig)
    state_update: StateUpdate = "none"
    window: int | None = None
    residual: bool = False

    def __post_init__(self) -> None:
        self.world  # noqa: B018 - checks state_update and window
        self._check_encoder()
        if self.loss not in get_args(Measure) or self.state_update not in get_args(StateUpdate):
            raise ValueError(f"loss {self.loss!r} or state_update {self.state_update!r} is unknown")
        if self.momentum is not None and not all(0 <= m <= 1 for m in self.momentum):
            raise ValueError(f"momentum must lie in [0, 1], not {list(self.momentum)}")
        for name in ("rollout_weight", "inverse_weight", "similarity_weight", "within_weight", "rollout_steps"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, but is {getattr(self, name)}")
        if self.within_weight > 0 and (self.regularizer is None or self.within_std <= 0):
            raise ValueError("within_weight weighs the regularizer's penalty: give one, and a within_std above 0")
        if self.rollout_context < 1 or self.teacher_weight <= 0:
            raise ValueError(
                f"rollout_context must be at least 1 frame, not {self.rollout_context}, and teacher_weight above 0, "
                f"not {self.teacher_weight}"
            )
        if self.predictor.use_extrinsics:
            raise ValueError("predictor.use_extrinsics: batches have no camera extrinsics; put them into the states")

    def _check_encoder(self) -> None:
        if self.encoder_from is None:
            if self.inherit_latent:
                raise ValueError("inherit_latent takes the latents of a run: name it as encoder_from")
            if self.momentum is None and self.regularizer is None:
                raise ValueError(
                    "nothing keeps an encoder that is trained along from giving all frames the same latents: set "
                    "momentum (for example [0.99, 1.0]), or regularizer {kind: variance_covariance}, or name a frozen "
                    "encoder as encoder_from"
                )
            return
        for name in ("momentum", "regularizer", "inverse_weight", "similarity_weight"):
            if getattr(self, name):
                raise ValueError(f"{name} has no meaning beside encoder_from: a frozen encoder is not trained")
        if self.latent.dim is not None and not self.inherit_latent:
            raise ValueError(
                "latent.dim is a learned projection, which over a frozen encoder (encoder_from) collapses: leave it "
                "out, or take over that of another world model (inherit_latent)"
            )

    @property
    def world(self) -> WorldConfig:
        """The part that a trained model needs."""
        return WorldConfig(
            latent=self.latent, state_update=self.state_update, window=self.window, residual=self.residual
        )

    @property
    def rolls_out(self) -> bool:
        """Whether there is a rollout loss."""
        return self.rollout_weight > 0 and self.rollout_steps > 0
