"""A policy that acts without planning, learned on a frozen world model: in imagination, by gradients through the
model's own rollouts (as Dreamer does, arXiv 1912.01603, here with the distance to a goal's latent in place of a learned
value), or from the actions that a planner finds there.

Shape legend: B clips, T frames, P pairs of start and goal, H steps, n latent tokens per frame, D width of a latent, A
action width, S state width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from jepa.config import ConfigError
from jepa.models.encoder import EncoderConfig
from jepa.models.flops import TRAINED, Work, linear_flops
from jepa.models.policy import Policy, PolicyNet, dream
from jepa.models.world_model import WorldModel
from jepa.objectives.base import Objective
from jepa.objectives.controller import ControllerConfig, ControllerObjective
from jepa.objectives.policy_config import PolicyBase, PolicyConfig
from jepa.objectives.world_flops import frame_flops, head_flops, steps_flops
from jepa.objectives.world_model import WorldModelObjective
from jepa.planning.energy import DISTANCES, Energy, EnergyConfig
from jepa.planning.imagination import Imagination
from jepa.planning.planner import plan
from jepa.planning.space import ActionSpace
from jepa.types import Batch, ClipConfig, Loss, Statistics

_THROUGH = TRAINED - 1  # forward and backward through a layer that does not learn


class Pairs(NamedTuple):
    """``starts`` and ``goals`` ``[P, n, D]``, and ``states`` ``[P, S]`` at the starts (None: the model has none)."""

    starts: Tensor
    goals: Tensor
    states: Tensor | None


class PolicyObjective(Objective):
    """The parts of a world model, frozen, and ``net``, the policy. The checkpoint holds both."""

    takes_masks = False
    takes_trajectories = True
    follow_up = "jepa eval {run} --task world_model"
    learns = "net"
    world_model: WorldModel

    def __init__(self, config: PolicyConfig, encoder: EncoderConfig, clip: ClipConfig, num_families: int) -> None:
        super().__init__()
        if config.base is None:
            raise ConfigError("objective.model is not settled: call jepa.settling.settled(config) first")
        if clip.num_frames < 2 or (config.goal_steps or 1) > clip.num_frames - 1:
            raise ConfigError(
                f"objective.goal_steps {config.goal_steps or 1} needs clips of {(config.goal_steps or 1) + 1} frames, "
                f"but clip.num_frames is {clip.num_frames}"
            )
        self.config, self.clip = config, clip
        world = _world_of(config.base, encoder)
        self.encoder = world.encoder  # type: ignore[assignment]
        self.head, self.predictor, self.scaling = world.head, world.predictor, world.scaling
        self.action_map = world.action_map
        self.requires_grad_(False)
        self.net = PolicyNet(config.net, self.head.grid.size, self.head.dim, world.action_dim)
        self.distance = DISTANCES[config.energy]
        # other names for the same modules, past nn.Module, which would count their weights twice
        object.__setattr__(self, "target_encoder", self.encoder)
        object.__setattr__(self, "world_model", world)
        self.train()

    @property
    def policy(self) -> Policy:
        """What is used in the end."""
        return Policy(self.world_model, self.net, self.config.horizon, self.config.energy)

    def set_statistics(self, statistics: Statistics) -> None:
        """Actions and states are scaled as the world model's own data was. Raises ``ConfigError`` where those of this
        data have other widths."""
        own = {"action": self.world_model.action_dim, "state": self.world_model.state_dim}
        for kind, given in (("action", statistics.action_mean), ("state", statistics.state_mean)):
            if own[kind] and len(given) != own[kind]:
                raise ConfigError(
                    f"the data has {kind}s of {len(given)} numbers, but those of objective.model {self.config.model} "
                    f"have {own[kind]}"
                )

    def set_bounds(self) -> None:
        """Bound the policy's actions as the config says, or as the world model's data were, once these are known.
        Raises ``ConfigError`` where they are not finite."""
        config, found = self.config, []
        for name in ("action_low", "action_high"):
            given, own = getattr(config, name), getattr(self.scaling, name)
            found.append(own if given is None else torch.tensor(given, dtype=own.dtype, device=own.device))
        try:
            self.net.set_bounds(*found)
        except ValueError as error:
            raise ConfigError(
                f"objective.model {config.model}: {error}; set objective.action_low and objective.action_high"
            ) from None

    def forward(self, batch: Batch, progress: float) -> Loss:
        """``batch.clip`` ``[B, C, T, H, W]`` gives starts and goals, ``batch.states`` ``[B, T, S]`` the states at them,
        where the model has any; the batch's own actions are not used. Raises ``ConfigError`` for a single clip, which
        has no other to take ``far_goals`` from."""
        if self.config.far_goals > 0 and len(batch.clip) < 2:
            raise ConfigError(
                f"objective.far_goals {self.config.far_goals:g} needs at least 2 clips on every process: raise "
                "train.batch_size, or set it to 0"
            )
        with torch.no_grad():
            latents = self.world_model.encode(batch.clip)
        pairs = self.pairs(latents, batch.states)
        return self.distilled(pairs) if self.config.mode == "distil" else self.imagined(pairs)

    def imagined(self, pairs: Pairs) -> Loss:
        """The sum of energies along the policy's own rollouts, mean over the pairs."""
        config = self.config
        rolled = dream(
            self.world_model, self.net, pairs.starts, pairs.goals, pairs.states, config.horizon, config.action_noise
        )
        energies = self.distance(rolled.latents.float(), pairs.goals[:, None])  # [P, H]
        total = energies.sum(dim=1).mean()
        if config.action_weight:
            total = total + config.action_weight * self.in_half_widths(rolled.actions).square().mean()
        return Loss(total, self._terms(pairs, energies.detach()))

    def distilled(self, pairs: Pairs) -> Loss:
        """The mean squared error, in half-widths, of the policy's actions to those of plans."""
        count = min(self.config.plans_per_step, len(pairs.starts))
        chosen = torch.randperm(len(pairs.starts), device=pairs.starts.device)[:count]
        rows = Pairs(*(None if part is None else part[chosen] for part in pairs))  # type: ignore[arg-type]
        seen, wanted, energy = self.plans(rows)
        goals = rows.goals[:, None].expand_as(seen)
        error = (self.in_half_widths(self.net(seen, goals)) - self.in_half_widths(wanted)).square().mean()
        return Loss(error, {"imitation": error.detach(), "plan_energy": energy})

    @torch.no_grad()
    def plans(self, pairs: Pairs) -> tuple[Tensor, Tensor, Tensor]:
        """The latents ``[P, K, n, D]`` before the first K actions ``[P, K, A]`` of a plan for every pair, and the mean
        energy of the plans per step, a scalar."""
        config, device = self.config, pairs.starts.device
        energy = Energy(EnergyConfig(kind=config.energy, over="sum"))
        space = ActionSpace(
            low=self.net.action_low, high=self.net.action_high, max_norm=None,
            norm_axes=torch.zeros_like(self.net.action_low, dtype=torch.bool),
        )  # fmt: skip
        seed = int(torch.randint(2**31, ()))  # on the host: a continued run draws the same, and nothing waits
        generator = torch.Generator(device).manual_seed(seed)
        none, seen, actions, costs = pairs.starts.new_zeros(0, space.dim), [], [], []
        for row, start in enumerate(pairs.starts):
            state = None if pairs.states is None else pairs.states[row : row + 1]
            imagination = Imagination(self.world_model, start[None], none, state)
            found = plan(config.planner, imagination.cost(energy, pairs.goals[row], space), space, generator)
            chosen = found.actions.clone()[: config.plan_steps]  # planned in inference mode, of which a clone is free
            passed = imagination.follow(chosen)
            seen.append(torch.cat((start[None], passed[:-1])))
            actions.append(chosen)
            costs.append(found.cost.clone())
        return torch.stack(seen), torch.stack(actions), torch.stack(costs).mean() / config.planner.horizon

    def pairs(self, latents: Tensor, states: Tensor | None, generator: torch.Generator | None = None) -> Pairs:
        """Starts and goals among the latents ``[B, T, n, D]`` and states ``[B, T, S]`` of clips, drawn anew in every
        call; of a single clip all goals are its own. Raises ``ConfigError`` without states that the model needs."""
        config, device = self.config, latents.device
        clips, frames = latents.shape[:2]

        def below(limit: Tensor | int) -> Tensor:
            """Whole numbers from 0 to below ``limit``, ``[P]``."""
            share = torch.rand(clips * config.pairs, generator=generator, device=device)
            return (share * limit).long().clamp_max(limit - 1)

        row = torch.arange(clips, device=device).repeat_interleave(config.pairs)
        start = below(frames - 1)
        ahead = 1 + below((frames - 1 - start).clamp_max(config.goal_steps or frames))
        far = torch.rand(row.shape, generator=generator, device=device) < (config.far_goals if clips > 1 else 0.0)
        other = (row + 1 + below(max(clips - 1, 1))) % clips
        goal_row, goal = torch.where(far, other, row), torch.where(far, below(frames), start + ahead)
        known = self._states(latents, states)
        return Pairs(latents[row, start], latents[goal_row, goal], None if known is None else known[row, start])

    def in_half_widths(self, actions: Tensor) -> Tensor:
        """Actions ``[..., A]`` from the middle of the bounds, in half-widths; an axis that stays still is 0."""
        half = self.net.half_range
        centre = (self.net.action_low + self.net.action_high) / 2
        return (actions - centre) / torch.where(half > 0, half, torch.ones_like(half))

    @torch.no_grad()
    def measure(self, latents: Tensor, states: Tensor | None) -> dict[str, Tensor]:
        """For the monitor, of the latents and states of held-out clips: ``energy`` to the goals (mean over the steps)
        of the policy's rollouts, from pairs that are the same at every call; ``energy_last`` after the last step, and
        ``energy_start`` at the start."""
        pairs = self.pairs(latents, states, torch.Generator(latents.device).manual_seed(0))
        rolled = dream(self.world_model, self.net, pairs.starts, pairs.goals, pairs.states, self.config.horizon)
        return self._terms(pairs, self.distance(rolled.latents.float(), pairs.goals[:, None]))

    def _terms(self, pairs: Pairs, energies: Tensor) -> dict[str, Tensor]:
        still = self.distance(pairs.starts, pairs.goals)
        return {"energy": energies.mean(), "energy_last": energies[:, -1].mean(), "energy_start": still.mean()}

    def _states(self, latents: Tensor, states: Tensor | None) -> Tensor | None:
        """``[B, T, S]``, where the model has any."""
        wanted = [*latents.shape[:2], self.world_model.state_dim]
        if wanted[-1] == 0:
            return None
        if states is None or list(states.shape) != wanted:
            given = "none" if states is None else list(states.shape)
            raise ConfigError(f"objective.model {self.config.model} needs states {wanted}, but the data has {given}")
        return states.float()

    def work(self, batch: Batch) -> Work:
        """Encoding, rollouts (forward and backward, or the planner's), and the policy."""
        clips, frames = len(batch.clip), batch.clip.shape[2]
        height = width = self.encoder.clip.crop_size  # the batch is as the loader made it, not cropped yet
        flops = frames * clips * frame_flops(self.encoder, height, width, trained=False)
        flops += head_flops(self.head, clips * frames, trained=False)
        config, pairs = self.config, clips * self.config.pairs
        if config.mode == "imagination":
            steps = sum(self._step_flops(step) for step in range(config.horizon))
            flops += pairs * (_THROUGH * steps + TRAINED * self.net.flops(config.horizon))
        else:
            planner, plans = config.planner, min(config.plans_per_step, pairs)
            steps = sum(self._step_flops(step) for step in range(planner.horizon))
            if planner.kind == "gradient":
                tried = planner.starts * (_THROUGH * planner.iterations + 1)
            else:
                tried = sum(planner.samples_in(number) for number in range(planner.iterations))
            flops += plans * (tried * steps + TRAINED * self.net.flops(config.plan_steps))
        return Work(flops, clips * frames * self.head.cells.size)

    def _step_flops(self, earlier: int) -> float:
        """Of one forward step of the frozen model in one row."""
        window = self.world_model.config.window
        tokens = self.head.grid.size
        flops = steps_flops(self.predictor, 1, tokens, earlier=earlier, window=window) / TRAINED
        return flops + (0.0 if self.action_map is None else linear_flops(self.action_map, 1))


def _world_of(base: PolicyBase, encoder: EncoderConfig) -> WorldModel:
    """The world model of ``base``, with fresh weights."""
    if isinstance(base.objective, ControllerConfig):
        return ControllerObjective(base.objective, encoder, base.clip, 0).world_model
    return WorldModelObjective(base.objective, encoder, base.clip, 0).world_model
