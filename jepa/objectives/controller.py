"""Real actions for a latent-action world model: a small network, trained on few labelled transitions, says a real
action in the actions that the model has inferred from video (arXiv 2601.05230). All else is frozen.

Shape legend: B batch, T frames, n latent tokens per frame, D width of a latent, A real action width, Z inferred action
width, N labelled transitions.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from jepa.config import ConfigError
from jepa.models.encoder import EncoderConfig
from jepa.models.flops import TRAINED, Work, linear_flops
from jepa.models.latent_action import ControllerNet, ControllerNetConfig
from jepa.models.world_model import Scaling, WorldModel
from jepa.objectives.bottleneck import VqConfig
from jepa.objectives.codebook import of_all_processes
from jepa.objectives.latent_action import LatentActionConfig, LatentActionObjective
from jepa.types import Batch, ClipConfig, Loss, Statistics

_PATIENCE = 20  # the data is through when so many times the known transitions went by without a new one


@dataclass(frozen=True, kw_only=True, slots=True)
class ControllerConfig:
    """``model``: the run (or checkpoint) of a latent_action objective. ``labels``: how many labelled transitions are
    used: the first different ones that the run's order of clips brings. ``batch``: how many of them make a step's loss.
    ``net``: the network. ``base`` and ``action_dim`` are written by the run, not by hand: what ``model`` is, and the
    width of the data's actions.
    """

    kind: Literal["controller"] = "controller"
    model: str = ""
    labels: int = 1000
    batch: int = 256
    net: ControllerNetConfig = field(default_factory=ControllerNetConfig)
    base: LatentActionConfig | None = None
    action_dim: int | None = None

    def __post_init__(self) -> None:
        if not self.model:
            raise ValueError("model must name a run of the objective latent_action")
        if self.labels < 2 or self.batch < 1:
            raise ValueError(f"labels must be at least 2 and batch at least 1, not {self.labels} and {self.batch}")
        if self.base is not None and self.base.bottleneck.kind == "zero":
            raise ValueError(f"model {self.model} has the bottleneck 'zero': there are no actions to be controlled by")


class ControllerObjective(LatentActionObjective):
    """The parts of the latent-action model, frozen, and ``controller``. ``world_model`` takes real actions.

    The labelled transitions are kept as buffers: a continued run has the same ones.
    """

    takes_trajectories = True
    follow_up = "jepa eval {run} --task world_model"
    learns = "controller"
    pooled: Tensor
    actions: Tensor
    wanted: Tensor
    keys: Tensor
    count: Tensor

    def __init__(self, config: ControllerConfig, encoder: EncoderConfig, clip: ClipConfig, num_families: int) -> None:
        if config.base is None or config.action_dim is None:
            raise ConfigError("objective.model is not settled: call jepa.settling.settled(config) first")
        super().__init__(config.base, encoder, clip, num_families)
        self.control = config
        self.requires_grad_(False)
        bottleneck, dim, wide = config.base.bottleneck, self.bottleneck.dim, config.action_dim
        num_codes = bottleneck.num_codes if isinstance(bottleneck, VqConfig) else 0
        self.action_scaling = Scaling(wide, 0)
        self.controller = ControllerNet(config.net, self.head.dim, wide, dim, num_codes)
        sizes: dict[str, tuple[int, ...]] = {"pooled": (self.head.dim,), "actions": (wide,), "wanted": (dim,)}
        for name, size in sizes.items():
            self.register_buffer(name, torch.zeros(config.labels, *size))
        self.register_buffer("keys", torch.full((config.labels, 2), -1, dtype=torch.int64))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self._count: int | None = None  # what ``count`` says, without asking the device at every step
        self._stale = 0  # transitions seen since the last new one
        self.register_load_state_dict_post_hook(_forget)
        world = WorldModel(
            self.target_encoder, self.target_head, self.predictor, self.action_scaling, self.config.world, clip,
            action_map=self.controller,
        )  # fmt: skip
        object.__setattr__(self, "world_model", world)
        self.train()

    def set_statistics(self, statistics: Statistics) -> None:
        """Of real actions. Raises ``ConfigError`` where they are not as wide as the model's."""
        self.action_scaling.set(statistics)

    def forward(self, batch: Batch, progress: float) -> Loss:
        """``batch.clip`` ``[B, C, T, H, W]`` and ``batch.actions`` ``[B, T-1, A]`` give labels until there are enough;
        the loss is that of labelled transitions drawn anew in every step. Raises ``ConfigError`` when the data holds
        fewer than ``labels``."""
        if self.known() < self.control.labels:
            self._collect(batch)
        rows = torch.randint(self.known(), (self.control.batch,), device=self.pooled.device)
        outputs = self.controller.pooled_outputs(self.pooled[rows], self.action_scaling.actions(self.actions[rows]))
        error = self.controller.loss(outputs, self.wanted[rows])
        return Loss(error, {"match": error.detach(), "labels": error.new_full((), self.known())})

    def inherited_state(self) -> dict[str, Tensor]:
        """The part of the state dict that the latent-action model has, too."""
        parts = ("encoder.", "head.", "predictor.", "scaling.", "target_", "inverse.", "bottleneck.")
        return {name: value for name, value in self.state_dict().items() if name.startswith(parts)}

    def known(self) -> int:
        """How many labelled transitions there are by now."""
        if self._count is None:
            self._count = int(self.count)
        return self._count

    def work(self, batch: Batch) -> Work:
        """The controller; encoding until the labels are collected is left out."""
        return Work(TRAINED * linear_flops(self.controller, self.control.batch), 0)

    def after_step(self, progress: float) -> None:
        """Nothing but the controller learns. Raises ``ConfigError`` at the end of a run that was too short to see all
        labels."""
        if progress >= 1 and self.known() < self.control.labels:
            raise ConfigError(
                f"objective.labels {self.control.labels}: the run ended after {self.known()} different transitions; "
                "raise train.steps or train.batch_size, or lower labels"
            )

    @torch.no_grad()
    def _collect(self, batch: Batch) -> None:
        if batch.actions is None:
            raise ConfigError("the data has no actions: a controller is trained on trajectories {trajectory: {}}")
        latents = self.world_model.encode(batch.clip)
        z = self.infer(latents).z
        fitting = [*z.shape[:2], self.control.action_dim]
        if list(batch.actions.shape) != fitting:
            raise ConfigError(
                f"clips of {latents.shape[1]} frames need actions {fitting}, but have {list(batch.actions.shape)}"
            )
        parts = (latents[:, :-1].mean(dim=2), batch.actions.to(latents), z, transition_keys(batch).to(latents.device))
        pooled, actions, wanted, keys = (of_all_processes(part.flatten(0, 1)) for part in parts)
        first = self.known()
        seen = {tuple(key) for key in self.keys[:first].tolist()}
        new: list[int] = []
        for row, key in enumerate(map(tuple, keys.tolist())):
            if key not in seen and first + len(new) < self.control.labels:
                seen.add(key)
                new.append(row)
        self._stale = 0 if new else self._stale + len(keys)
        if not new and self._stale > _PATIENCE * first:
            raise ConfigError(
                f"objective.labels {self.control.labels}: the data has no more than {first} different transitions at "
                "the clip's rate; lower labels, or record more"
            )
        last = first + len(new)
        for name, value in (("pooled", pooled), ("actions", actions), ("wanted", wanted), ("keys", keys)):
            getattr(self, name)[first:last] = value[new]
        self.count.fill_(last)
        self._count = last
        self._fit_scale()

    def _fit_scale(self) -> None:
        """Give the controller what its answers are made of: the codes, or mean and spread of the labels."""
        if self.controller.codes is not None:
            if self.codes is None:
                raise ConfigError(
                    f"objective.model {self.control.model}: its codes have not begun (bottleneck.warmup): train it on"
                )
            self.controller.codes.copy_(self.codes)
            return
        wanted = self.wanted[: self.known()]
        self.controller.mean.copy_(wanted.mean(dim=0))
        spread = wanted.std(dim=0)
        self.controller.std.copy_(torch.where(spread > 1e-6, spread, torch.ones_like(spread)))


def transition_keys(batch: Batch) -> Tensor:
    """What tells transitions apart: the item of the data, and the millisecond at which they begin; int64
    ``[B, T-1, 2]``. Raises ``ConfigError`` for batches that do not say where their clips come from."""
    if batch.index is None or batch.start_s is None or batch.end_s is None:
        raise ConfigError("labelled transitions need batches with index, start_s and end_s, as the loader makes them")
    frames = batch.clip.shape[2]
    gap = (batch.end_s - batch.start_s) / frames
    begin = batch.start_s[:, None] + gap[:, None] * torch.arange(frames - 1, device=batch.start_s.device)
    item = batch.index.to(begin.device)[:, None].expand(-1, frames - 1)
    return torch.stack((item, (1000 * begin).round().long()), dim=-1)


def _forget(module: nn.Module, incompatible: Any) -> None:
    """After other weights were loaded."""
    assert isinstance(module, ControllerObjective)
    module._count, module._stale = None, 0
