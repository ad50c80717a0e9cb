"""The action-conditioned predictor of V-JEPA 2-AC: from latents, actions and states of steps 0..k the latents of k+1.

Shape legend: B batch, T steps, h/w token grid of a step, N = T*h*w tokens, K conditioning tokens per step,
D encoder width, P predictor width, A action width, S state width, E extrinsics width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from jepa.models.layers import Block, Init, MlpKind, check_width, init_weights
from jepa.models.linear import Linear
from jepa.models.recompute import Recomputing, run_block
from jepa.models.rope import RopeConfig, coordinate_table
from jepa.types import TokenGrid


@dataclass(frozen=True, kw_only=True, slots=True)
class ActionPredictorConfig:
    """The defaults are V-JEPA 2-AC's: 7-d actions and states (position, orientation, gripper), 6-d camera extrinsics.

    ``use_extrinsics``: a third conditioning token per step. The published file holds its weights in any case.
    """

    embed_dim: int = 1024
    depth: int = 24
    num_heads: int = 16
    mlp_ratio: float = 4.0
    mlp: MlpKind = "gelu"
    action_dim: int = 7
    state_dim: int = 7
    extrinsics_dim: int = 6
    use_extrinsics: bool = False
    activation_checkpointing: bool = False
    init: Init = "trunc_normal"

    def __post_init__(self) -> None:
        check_width(self.embed_dim, self.depth, self.num_heads, self.mlp_ratio, "rope", "action predictor")
        if min(self.action_dim, self.state_dim, self.extrinsics_dim) < 1:
            raise ValueError(
                f"action_dim {self.action_dim}, state_dim {self.state_dim} and extrinsics_dim {self.extrinsics_dim} "
                "must be at least 1"
            )


class ActionPredictor(Recomputing):
    """Tokens of every step [action, state, (extrinsics), patches] attend to their own step and all earlier ones.

    Patches have rotary positions (t, row, column), conditioning tokens (t, 0, 0). ``rope`` should spread ``cells``
    over the native grid, as the published model does for other resolutions.
    Source: V-JEPA 2 (arXiv 2506.09985, section 3).
    """

    def __init__(self, config: ActionPredictorConfig, encoder_dim: int, grid: TokenGrid, rope: RopeConfig) -> None:
        super().__init__()
        dim = config.embed_dim
        self.config, self.grid, self.rope = config, grid, rope
        self.recompute = "full" if config.activation_checkpointing else "none"
        self.predictor_embed = Linear(encoder_dim, dim)
        self.action_encoder = Linear(config.action_dim, dim)
        self.state_encoder = Linear(config.state_dim, dim)
        self.extrinsics_encoder = Linear(config.extrinsics_dim, dim)
        self.predictor_blocks = nn.ModuleList(
            Block(dim, config.num_heads, config.mlp_ratio, config.mlp) for _ in range(config.depth)
        )
        self.predictor_norm = nn.LayerNorm(dim, eps=1e-6)
        self.predictor_proj = Linear(dim, encoder_dim)
        init_weights(self, self.predictor_blocks, config.init)

    def forward(
        self,
        latents: Tensor,
        actions: Tensor,
        states: Tensor,
        extrinsics: Tensor | None = None,
        grid: TokenGrid | None = None,
    ) -> Tensor:
        """Latents ``[B, T*h*w, D]``, actions ``[B, T, A]``, states ``[B, T, S]``, extrinsics ``[B, T, E]`` to the next
        steps' latents ``[B, T*h*w, D]``: row k predicts step k+1, not layer-normed.

        T is what the actions say; ``grid`` gives h and w where they are not the native ones.
        """
        native = self.grid if grid is None else grid
        steps = actions.shape[1]
        place = TokenGrid(steps, native.h, native.w)
        conditions = self._conditions(latents, actions, states, extrinsics, place)
        x = self.predictor_embed(latents).unflatten(1, (steps, -1))
        x = torch.cat((conditions.to(x.dtype), x), dim=2).flatten(1, 2)
        num_conditions = conditions.shape[2]
        coordinates = step_coordinates(place, num_conditions, self.rope, x.device)
        head_dim = self.config.embed_dim // self.config.num_heads
        table = coordinate_table(coordinates[None], head_dim, self.rope.frequencies)
        for block in self.predictor_blocks:
            x = run_block(block, x, table, None, self.recompute_now, steps)
        x = x.unflatten(1, (steps, -1))[:, :, num_conditions:].flatten(1, 2)
        return self.predictor_proj(self.predictor_norm(x))

    def _conditions(
        self, latents: Tensor, actions: Tensor, states: Tensor, extrinsics: Tensor | None, grid: TokenGrid
    ) -> Tensor:
        """Conditioning tokens ``[B, T, K, P]``, after a check of all shapes."""
        batch, config = len(latents), self.config
        if latents.shape[1] != grid.size:
            raise ValueError(
                f"{latents.shape[1]} latents are not {grid.t} steps (as actions {list(actions.shape)} say) of "
                f"{grid.h} x {grid.w} tokens"
            )
        wanted = {"actions": (actions, config.action_dim), "states": (states, config.state_dim)}
        if config.use_extrinsics:
            if extrinsics is None:
                raise ValueError("this action predictor was trained with camera extrinsics: give extrinsics [B, T, E]")
            wanted["extrinsics"] = (extrinsics, config.extrinsics_dim)
        elif extrinsics is not None:
            raise ValueError("this action predictor was trained without camera extrinsics: leave extrinsics out")
        for name, (value, width) in wanted.items():
            if tuple(value.shape) != (batch, grid.t, width):
                raise ValueError(f"{name} must be {[batch, grid.t, width]}, not {list(value.shape)}")
        parts = [self.action_encoder(actions), self.state_encoder(states)]
        if config.use_extrinsics:
            parts.append(self.extrinsics_encoder(extrinsics))
        return torch.stack(parts, dim=2)


def step_coordinates(grid: TokenGrid, num_conditions: int, rope: RopeConfig, device: torch.device) -> Tensor:
    """Coordinates (t, h, w) of every step's conditioning tokens, then its patches: float32 ``[T * (K + h*w), 3]``."""
    patches = grid.coordinates(grid.ids(device)).float()
    patches = patches * patches.new_tensor([1.0, rope.scale(grid.h), rope.scale(grid.w)])
    patches = patches.unflatten(0, (grid.t, -1))  # [T, h*w, 3]
    conditions = torch.zeros(grid.t, num_conditions, 3, device=device)
    conditions[:, :, 0] = torch.arange(grid.t, device=device)[:, None]
    return torch.cat((conditions, patches), dim=1).flatten(0, 1)
