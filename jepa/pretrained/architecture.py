"""From the keys that describe a published checkpoint to the parts that its weights go into."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from jepa.config import ConfigError, from_dict, suggest
from jepa.models.action_predictor import ActionPredictor, ActionPredictorConfig
from jepa.models.attentive import AttentiveConfig, AttentiveProbe
from jepa.models.encoder import Encoder, EncoderConfig, Position
from jepa.models.layers import MlpKind
from jepa.models.predictor import Predictor, PredictorConfig
from jepa.models.rope import RopeConfig
from jepa.types import ClipConfig

# What a family's published models have in common; a checkpoint's own keys are laid over it.
FAMILIES: dict[str, dict[str, Any]] = {
    "ijepa": {"num_frames": 1, "tubelet_size": 1, "num_mask_tokens": 1},
    "vjepa": {"num_frames": 16, "num_mask_tokens": 2},
    "vjepa2": {"img_size": 256, "num_frames": 64, "num_mask_tokens": 10, "use_rope": True},
    "vjepa2_ac": {
        "img_size": 256, "num_frames": 64, "use_rope": True, "predictor_embed_dim": 1024, "predictor_depth": 24,
        "predictor_num_heads": 16,
    },
    "vjepa2_1": {
        "img_size": 384, "num_frames": 64, "num_mask_tokens": 8, "use_rope": True, "interpolate_rope": True,
        "modality_embedding": True, "n_output_distillation": 4,
    },
    "probe": {},
}  # fmt: skip
_LEVELS = {12: (2, 5, 8, 11), 24: (5, 11, 17, 23), 40: (9, 19, 29, 39), 48: (11, 23, 37, 47)}  # V-JEPA 2.1, by depth
_BASE_GRID = {14: 18, 16: 16}  # V-JEPA 2.1: patch size to the grid whose extent all grids are spread over


@dataclass(frozen=True, kw_only=True, slots=True)
class Architecture:
    """A published model's shape, in the words of its own configuration files.

    ``img_size`` in pixels, ``num_frames`` 1 for an image model. ``hierarchical_layers``: blocks (from 0) with a norm of
    their own, by default the published ones for the depth; ``n_output_distillation``: how many of them, counted from
    the last, the predictor reads and predicts; ``teacher_embed_dim``: width of what it predicts where another model was
    the teacher. ``num_classes``, or for anticipation ``classifiers`` (verb, noun, action): the probe's.
    ``uniform_power`` says how a stored position table was once computed; the table itself is what is loaded.
    ``expected_outputs_from``: the weights to load when none are named.
    """

    family: str
    embed_dim: int
    num_heads: int
    depth: int
    mlp_ratio: float = 4.0
    patch_size: int = 16
    img_size: int = 224
    num_frames: int = 16
    tubelet_size: int = 2
    predictor_embed_dim: int = 384
    predictor_depth: int = 12
    predictor_num_heads: int = 12
    num_mask_tokens: int = 1
    uniform_power: bool = True
    use_rope: bool = False
    use_silu: bool = False
    wide_silu: bool = True
    interpolate_rope: bool = False
    modality_embedding: bool = False
    n_output_distillation: int = 1
    hierarchical_layers: tuple[int, ...] = ()
    teacher_embed_dim: int | None = None
    action_embed_dim: int = 7
    use_extrinsics: bool = False
    num_classes: int | None = None
    classifiers: dict[str, int] = field(default_factory=dict)
    expected_outputs_from: str | None = None

    @property
    def mlp(self) -> MlpKind:
        """The MLP of every block."""
        if not self.use_silu:
            return "gelu"
        return "swiglu" if self.wide_silu else "swiglu_full"

    @property
    def position(self) -> Position:
        """How tokens know their place."""
        return "rope" if self.use_rope else "table"

    @property
    def rope(self) -> RopeConfig:
        """Rotary positions as this family was trained with them (see ``jepa.models.rope``)."""
        if self.family != "vjepa2_1":
            return RopeConfig(frequencies="tiled")
        if not self.interpolate_rope:
            return RopeConfig()
        if self.patch_size not in _BASE_GRID:
            known = " or ".join(map(str, _BASE_GRID))
            raise ConfigError(f"interpolate_rope is defined for patch_size {known}, not {self.patch_size}")
        return RopeConfig(base_grid=_BASE_GRID[self.patch_size])

    @property
    def levels(self) -> tuple[int, ...]:
        """Blocks with a norm of their own; none outside V-JEPA 2.1."""
        if self.family != "vjepa2_1":
            return ()
        if not self.hierarchical_layers and self.depth not in _LEVELS:
            raise ConfigError(f"hierarchical_layers must be given for depth {self.depth}: blocks, the last among them")
        return self.hierarchical_layers or _LEVELS[self.depth]


def read_architecture(family: str | None, keys: dict[str, Any]) -> Architecture:
    """Keys to a checked ``Architecture``. Raises ``ConfigError`` naming what is unknown, missing or of a wrong type."""
    if family is None:
        raise ConfigError(f"family is missing: say which of {', '.join(FAMILIES)} the file belongs to")
    if family not in FAMILIES:
        raise ConfigError(f"unknown family {family!r}{suggest(family, FAMILIES)}")
    missing = [name for name in ("embed_dim", "num_heads", "depth") if name not in keys]
    if missing:
        raise ConfigError(f"the architecture of a {family} checkpoint lacks {', '.join(missing)}")
    return from_dict(Architecture, {"family": family, **FAMILIES[family], **keys})


def default_clip(arch: Architecture) -> ClipConfig:
    """The clip of a model whose own preprocessing is not known: 4 frames per second, the middle of the picture."""
    fps = 4.0 if arch.num_frames > 1 else None
    short_side = round(arch.img_size * 256 / 224)
    return ClipConfig(num_frames=arch.num_frames, fps=fps, crop_size=arch.img_size, short_side=short_side)


def build_encoder(arch: Architecture, clip: ClipConfig) -> Encoder:
    """The encoder, with fresh weights."""
    config = EncoderConfig(
        embed_dim=arch.embed_dim, depth=arch.depth, num_heads=arch.num_heads, mlp_ratio=arch.mlp_ratio,
        patch_size=arch.patch_size, tubelet_size=arch.tubelet_size, position=arch.position, rope=arch.rope,
        mlp=arch.mlp, levels=arch.levels, image_tokenizer=arch.family == "vjepa2_1",
        modality_embedding=arch.modality_embedding,
    )  # fmt: skip
    return Encoder(config, clip)


def build_predictor(arch: Architecture, encoder: Encoder) -> Predictor | ActionPredictor:
    """The family's predictor for this encoder, with fresh weights."""
    shape: dict[str, Any] = {
        "embed_dim": arch.predictor_embed_dim, "depth": arch.predictor_depth, "num_heads": arch.predictor_num_heads,
        "mlp": arch.mlp,
    }  # fmt: skip
    if arch.family == "vjepa2_ac":
        action = ActionPredictorConfig(
            **shape, action_dim=arch.action_embed_dim, state_dim=arch.action_embed_dim,
            extrinsics_dim=arch.action_embed_dim - 1, use_extrinsics=arch.use_extrinsics,
        )  # fmt: skip
        rope = RopeConfig(frequencies="tiled", base_grid=encoder.grid.h, spread="cells")
        return ActionPredictor(action, encoder.embed_dim, encoder.grid, rope)
    dense = arch.family == "vjepa2_1"
    config = PredictorConfig(
        **shape, levels=arch.n_output_distillation, out_dim=arch.teacher_embed_dim, context_head=dense,
        modality_embedding=dense and arch.modality_embedding,
    )  # fmt: skip
    return Predictor(config, encoder.embed_dim, encoder.grid, arch.num_mask_tokens, arch.position, arch.rope)


def build_probe(arch: Architecture) -> AttentiveProbe:
    """The attentive probe, with fresh weights."""
    config = AttentiveConfig(
        embed_dim=arch.embed_dim, num_heads=arch.num_heads, depth=arch.depth, mlp_ratio=arch.mlp_ratio,
        num_classes=arch.num_classes, classifiers=arch.classifiers,
    )  # fmt: skip
    return AttentiveProbe(config)
