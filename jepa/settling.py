"""What a world model's config leaves to others, written into it before the run begins: the frozen encoder's own config
and preprocessing, and the widths of the data's actions and states.

So ``run_dir/config.yaml`` and every checkpoint say all that is needed to rebuild the model; the encoder's weights lie
in the checkpoint too, and its own file is not needed any more.
"""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jepa.checkpoint import find_checkpoint, list_checkpoints, load_checkpoint
from jepa.config import ConfigError, differences, from_dict, load_yaml, to_dict
from jepa.data.settings import open_data
from jepa.data.trajectories.statistics import check_widths
from jepa.frozen_model import load_frozen_model, read_base
from jepa.models.encoder import Encoder, EncoderConfig
from jepa.models.latent_head import LatentConfig
from jepa.models.timm_config import TimmConfig
from jepa.objectives import (
    OBJECTIVES,
    ControllerConfig,
    DecoderConfig,
    LatentActionConfig,
    PolicyBase,
    PolicyConfig,
    WorldModelConfig,
)
from jepa.objectives.world_config import FrozenConfig
from jepa.tensorfiles import CheckpointError
from jepa.types import ClipConfig

if TYPE_CHECKING:
    from jepa.train import TrainConfig

_PREPROCESSING = ("crop_size", "interpolation", "mean", "std")  # of the clip: what a frozen encoder was trained with


class Found(NamedTuple):
    """A frozen encoder: ``config`` of ours, or ``timm``'s, its own clip, and a world model's ``latent``."""

    config: EncoderConfig
    timm: TimmConfig | None
    clip: ClipConfig
    latent: LatentConfig | None


def settled(config: TrainConfig) -> TrainConfig:
    """``config`` with nothing left open. A run that goes on takes from its ``config.yaml`` what it found at first.

    Raises ``ConfigError`` where the config says something else than the encoder or the data.
    """
    objective = config.objective
    if not isinstance(objective, WorldModelConfig | ControllerConfig | PolicyConfig | DecoderConfig):
        return config
    conditioned = OBJECTIVES[objective.kind][1].takes_trajectories
    if conditioned and config.augment.flip > 0:
        raise ConfigError(
            f"augment.flip is {config.augment.flip}, but a mirrored picture no longer fits its actions: set it to 0"
        )
    earlier = _earlier(config)
    if isinstance(objective, ControllerConfig):
        return _with_model(config, objective, earlier)
    if isinstance(objective, PolicyConfig):
        return _with_policy(config, objective, earlier)
    if isinstance(objective, DecoderConfig):
        return _with_decoded(config, objective, earlier)
    config = _with_encoder(config, objective, earlier)
    return _with_widths(config, earlier) if conditioned else config


def _earlier(config: TrainConfig) -> TrainConfig | None:
    """The settled config of the run that goes on."""
    path = Path(config.run_dir) / "config.yaml"
    if not path.exists() or not list_checkpoints(config.run_dir):
        return None
    return from_dict(type(config), load_yaml(path))


def _with_encoder(config: TrainConfig, objective: WorldModelConfig, earlier: TrainConfig | None) -> TrainConfig:
    name = objective.encoder_from
    if name is None:
        if objective.frozen is not None:
            raise ConfigError("objective.frozen is written by a run with encoder_from: leave it out")
        return config
    found = _found_before(name, earlier) or _find(name)
    if config.encoder not in (EncoderConfig(), found.config):
        other = "; ".join(differences(to_dict(config.encoder), to_dict(found.config), "encoder"))
        raise ConfigError(f"objective.encoder_from {name} is another encoder ({other}): leave the section encoder out")
    for key in _PREPROCESSING:
        given, own = getattr(config.clip, key), getattr(found.clip, key)
        if given not in (getattr(ClipConfig(num_frames=1), key), own):
            raise ConfigError(f"clip.{key} is {given}, but encoder_from {name} was trained with {own}: leave it out")
    clip = replace(config.clip, **{key: getattr(found.clip, key) for key in _PREPROCESSING})
    frozen = FrozenConfig(clip=found.clip, timm=found.timm)
    latent = _inherited(objective, found) if objective.inherit_latent else objective.latent
    settled_objective = replace(objective, frozen=frozen, latent=latent)
    return replace(config, encoder=found.config, clip=clip, objective=settled_objective)


def _inherited(objective: WorldModelConfig, found: Found) -> LatentConfig:
    """The ``latent`` of the world model that ``encoder_from`` names."""
    name, own = objective.encoder_from, found.latent
    if own is None:
        raise ConfigError(f"objective.inherit_latent: encoder_from {name} is no world model and has no latent")
    if objective.latent not in (LatentConfig(), own):
        other = "; ".join(differences(to_dict(objective.latent), to_dict(own), "latent"))
        raise ConfigError(f"objective.inherit_latent takes that of encoder_from {name} ({other}): leave latent out")
    return own


def _found_before(name: str, earlier: TrainConfig | None) -> Found | None:
    objective = None if earlier is None else earlier.objective
    if earlier is None or not isinstance(objective, WorldModelConfig) or objective.frozen is None:
        return None
    if objective.encoder_from != name:
        return None  # the comparison of the run directory's config will say so
    return Found(earlier.encoder, objective.frozen.timm, objective.frozen.clip, objective.latent)


def _find(name: str) -> Found:
    encoder, head, _ = load_frozen_model(name)
    latent = None if head is None else head.config
    if isinstance(encoder, Encoder):
        return Found(encoder.config, None, encoder.clip, latent)
    timm = getattr(encoder, "config", None)
    assert isinstance(timm, TimmConfig), "encoders are ours or timm's"
    return Found(EncoderConfig(), timm, encoder.clip, latent)


def _with_widths(config: TrainConfig, earlier: TrainConfig | None) -> TrainConfig:
    """``action_dim`` and ``state_dim`` as the run had them, or as the first clip has them."""
    objective = config.objective
    assert isinstance(objective, WorldModelConfig)
    predictor = objective.predictor
    if predictor.action_dim is None or predictor.state_dim is None:
        if earlier is not None and isinstance(earlier.objective, WorldModelConfig):
            widths = earlier.objective.predictor.action_dim, earlier.objective.predictor.state_dim
        else:
            widths = data_widths(config)
        actions, states = widths
        predictor = replace(
            predictor,
            action_dim=actions if predictor.action_dim is None else predictor.action_dim,
            state_dim=states if predictor.state_dim is None else predictor.state_dim,
        )
    return replace(config, objective=replace(objective, predictor=predictor))


def _with_model(config: TrainConfig, objective: ControllerConfig, earlier: TrainConfig | None) -> TrainConfig:
    """What ``objective.model`` is (its encoder and clip take the place of the config's own), and the actions' width."""
    known = None if earlier is None else earlier.objective
    if earlier is not None and isinstance(known, ControllerConfig) and known.model == objective.model:
        base, encoder, own, width = known.base, earlier.encoder, earlier.clip, known.action_dim
    else:
        base, encoder, own = _read_model(objective.model)
        width = None
    config = _with_parts(config, objective.model, encoder, own)
    width = data_widths(config)[0] if width is None else width
    return replace(config, objective=replace(objective, base=base, action_dim=width))


def _read_model(name: str) -> tuple[LatentActionConfig, EncoderConfig, ClipConfig]:
    """Of a latent_action run. Raises ``ConfigError`` for another one."""
    settings = _stored(name)
    kind = settings["objective"]["kind"]
    if kind != "latent_action":
        raise ConfigError(f"objective.model {name} was trained with objective {kind!r}, not 'latent_action'")
    base, encoder = from_dict(LatentActionConfig, settings["objective"]), from_dict(EncoderConfig, settings["encoder"])
    return base, encoder, from_dict(ClipConfig, settings["clip"])


def _with_policy(config: TrainConfig, objective: PolicyConfig, earlier: TrainConfig | None) -> TrainConfig:
    """What ``objective.model`` is; its encoder and clip take the place of the config's own."""
    known = None if earlier is None else earlier.objective
    if earlier is not None and isinstance(known, PolicyConfig) and known.model == objective.model:
        base, encoder = known.base, earlier.encoder
    else:
        base, encoder = _read_base(objective.model)
    assert base is not None, "a run's config.yaml is settled"
    config = _with_parts(config, objective.model, encoder, base.clip)
    return replace(config, objective=replace(objective, base=base))


def _with_decoded(config: TrainConfig, objective: DecoderConfig, earlier: TrainConfig | None) -> TrainConfig:
    """What ``objective.model`` is; its encoder and clip take the place of the config's own."""
    known = None if earlier is None else earlier.objective
    if earlier is not None and isinstance(known, DecoderConfig) and known.model == objective.model:
        base, encoder, own = known.base, earlier.encoder, earlier.clip
    else:
        try:
            base, encoder, own = read_base(objective.model)
        except CheckpointError as error:
            raise ConfigError(f"objective.model: {error}") from None
    if own.num_frames == 1 and base is not None and base.latent is None and config.clip.num_frames > 1:
        raise ConfigError(
            f"clip.num_frames is {config.clip.num_frames}, but objective.model {objective.model} encodes single "
            "images: set it to 1"
        )
    config = _with_parts(config, objective.model, encoder, own)
    return replace(config, objective=replace(objective, base=base))


def _read_base(name: str) -> tuple[PolicyBase, EncoderConfig]:
    """Of a world_model or controller run. Raises ``ConfigError`` for another one."""
    settings = _stored(name)
    kinds = {"world_model": WorldModelConfig, "controller": ControllerConfig}
    kind = settings["objective"]["kind"]
    if kind not in kinds:
        raise ConfigError(
            f"objective.model {name} was trained with objective {kind!r}, not 'world_model' or 'controller'"
        )
    objective: WorldModelConfig | ControllerConfig = from_dict(kinds[kind], settings["objective"], "objective")
    clip = from_dict(ClipConfig, settings["clip"], "clip")
    return PolicyBase(objective=objective, clip=clip), from_dict(EncoderConfig, settings["encoder"], "encoder")


def _stored(name: str) -> dict[str, Any]:
    """The config of the run ``name``. Raises ``ConfigError`` where there is none."""
    try:
        settings: dict[str, Any] = load_checkpoint(find_checkpoint(name), mmap=True)["config"]
    except CheckpointError as error:
        raise ConfigError(f"objective.model: {error}") from None
    return settings


def _with_parts(config: TrainConfig, model: str, encoder: EncoderConfig, own: ClipConfig) -> TrainConfig:
    """``config`` with the encoder and the clip of ``model``, but for the number of frames."""
    if config.encoder not in (EncoderConfig(), encoder):
        raise ConfigError(f"objective.model {model} has another encoder: leave the section encoder out")
    plain, clip = ClipConfig(num_frames=1), replace(own, num_frames=config.clip.num_frames)
    for field in fields(ClipConfig):
        given, wanted = getattr(config.clip, field.name), getattr(clip, field.name)
        if given not in (wanted, getattr(plain, field.name)):
            raise ConfigError(f"clip.{field.name} is {given}, but objective.model {model} was trained with {wanted}")
    return replace(config, encoder=encoder, clip=clip)


def data_widths(config: TrainConfig) -> tuple[int, int]:
    """Numbers of an action and of a state (0: there are none) of the data. Raises ``ConfigError`` without actions."""
    sources, _ = open_data(config.data, config.clip)
    widths = check_widths(sources)  # of the first episode that can be used: one that cannot is counted, not fatal
    if widths is None:
        raise ConfigError(
            f"data source {sources[0].config.path} has no actions: a world model is trained on trajectories, as "
            "{path: ..., trajectory: {}} reads them"
        )
    return widths
