"""The action-conditioned predictor of V-JEPA 2-AC: from latents, actions and states of steps 0..k the latents of k+1.

Shape legend: B batch, T steps, h/w token grid of a step, N = T*h*w tokens, K conditioning tokens per step,
D width of a latent, P predictor width, A action width, S state width, E extrinsics width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from jepa.models.layers import Block, Init, MlpKind, check_width, init_weights
from jepa.models.linear import Linear
from jepa.models.memory import Cache, Pages
from jepa.models.recompute import Recomputing, run, run_block
from jepa.models.rope import RopeConfig, coordinate_table
from jepa.types import TokenGrid


@dataclass(frozen=True, kw_only=True, slots=True)
class ActionPredictorConfig:
    """The defaults are V-JEPA 2-AC's, whose actions and states are 7-d (position, orientation, gripper).

    ``action_dim`` and ``state_dim`` None: not known yet, a training run takes them from its data. ``state_dim`` 0: no
    state token. ``use_extrinsics``: a token of the camera's ``extrinsics_dim`` numbers per step. ``extrinsics_dim`` 0:
    no weights for it (the published file holds some that are not used).
    """

    embed_dim: int = 1024
    depth: int = 24
    num_heads: int = 16
    mlp_ratio: float = 4.0
    mlp: MlpKind = "gelu"
    action_dim: int | None = None
    state_dim: int | None = None
    extrinsics_dim: int = 0
    use_extrinsics: bool = False
    activation_checkpointing: bool = False
    init: Init = "trunc_normal"

    def __post_init__(self) -> None:
        check_width(self.embed_dim, self.depth, self.num_heads, self.mlp_ratio, "rope", "action predictor")
        for name, least in (("action_dim", 1), ("state_dim", 0), ("extrinsics_dim", int(self.use_extrinsics))):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, not {value}")


class ActionPredictor(Recomputing):
    """Tokens of every step [action, state, (extrinsics), patches] attend to their own step and all earlier ones.

    Patches have rotary positions (t, row, column), conditioning tokens (t, 0, 0). ``rope`` should spread ``cells``
    over the native grid, as the published model does for other resolutions.
    Source: V-JEPA 2 (arXiv 2506.09985, section 3).
    """

    def __init__(self, config: ActionPredictorConfig, encoder_dim: int, grid: TokenGrid, rope: RopeConfig) -> None:
        super().__init__()
        dim = config.embed_dim
        if config.action_dim is None or config.state_dim is None:
            raise ValueError(
                f"action_dim {config.action_dim} and state_dim {config.state_dim} must be known before an action "
                "predictor is built"
            )
        self.config, self.grid, self.rope = config, grid, rope
        self.action_dim, self.state_dim = config.action_dim, config.state_dim
        self.recompute = "full" if config.activation_checkpointing else "none"
        self.predictor_embed = Linear(encoder_dim, dim)
        self.action_encoder = Linear(self.action_dim, dim)
        self.state_encoder = Linear(self.state_dim, dim) if self.state_dim else None
        self.extrinsics_encoder = Linear(config.extrinsics_dim, dim) if config.extrinsics_dim else None
        self.predictor_blocks = nn.ModuleList(
            Block(dim, config.num_heads, config.mlp_ratio, config.mlp) for _ in range(config.depth)
        )
        self.predictor_norm = nn.LayerNorm(dim, eps=1e-6)
        self.predictor_proj = Linear(dim, encoder_dim)
        init_weights(self, self.predictor_blocks, config.init)
        for embed in (self.action_encoder, self.state_encoder, self.extrinsics_encoder):
            if embed is not None:  # the blocks' first norm would take the length of W a away, but not that of W a + b
                nn.init.normal_(embed.bias)

    def forward(
        self,
        latents: Tensor,
        actions: Tensor,
        states: Tensor | None = None,
        extrinsics: Tensor | None = None,
        grid: TokenGrid | None = None,
        window: int | None = None,
    ) -> Tensor:
        """Latents ``[B, T*h*w, D]``, actions ``[B, T, A]``, states ``[B, T, S]``, extrinsics ``[B, T, E]`` to the next
        steps' latents ``[B, T*h*w, D]``: row k predicts step k+1, not layer-normed.

        T is what the actions say; ``grid`` gives h and w where they are not the native ones. ``window``: a step sees
        only so many steps, itself among them. Raises ``ValueError`` for other shapes.
        """
        x, table, steps = self._embed(latents, actions, states, extrinsics, grid, 0)
        for block, wanted in zip(self.predictor_blocks, self._wanted(latents, steps), strict=True):
            x = run_block(block, x, table, wanted, self.recompute_now, steps, window)
        return self._put_out(x)

    def extend(
        self,
        cache: Cache | None,
        latents: Tensor,
        actions: Tensor,
        states: Tensor | None = None,
        extrinsics: Tensor | None = None,
        grid: TokenGrid | None = None,
        window: int | None = None,
    ) -> tuple[Tensor, Cache]:
        """``forward`` of the steps that follow those of ``cache`` (None: there are none yet), without computing those
        again: the next steps' latents, and the cache with these steps. ``window``: all earlier steps are forgotten that
        no later one will see, so that memory stays bounded.
        """
        cache = Cache(tuple(() for _ in self.predictor_blocks), 0, len(latents)) if cache is None else cache
        if cache.batch != len(latents):
            raise ValueError(f"a memory of {cache.batch} rows cannot be extended by {len(latents)}")
        x, table, steps = self._embed(latents, actions, states, extrinsics, grid, cache.seen)
        blocks: list[Pages] = []
        wanted = self._wanted(latents, steps)
        for block, pages, count in zip(self.predictor_blocks, cache.blocks, wanted, strict=True):
            assert isinstance(block, Block)
            x, page = run(block.extend, self.recompute_now, x, table, steps, pages, window, count)
            blocks.append((*pages, page))
        cache = Cache(tuple(blocks), cache.seen + steps, cache.batch)
        return self._put_out(x), cache if window is None else cache.trimmed(window - 1)

    def _embed(
        self, latents: Tensor, actions: Tensor, states: Tensor | None, extrinsics: Tensor | None,
        grid: TokenGrid | None, start: int,
    ) -> tuple[Tensor, Tensor, int]:  # fmt: skip
        """Tokens ``[B, T*(K + h*w), P]``, their rotary table when the first step's time is ``start``, and T."""
        native = self.grid if grid is None else grid
        if actions.dim() != 3:
            raise ValueError(f"actions must be [B, T, {self.action_dim}], not {list(actions.shape)}")
        steps = actions.shape[1]
        place = TokenGrid(steps, native.h, native.w)
        conditions = self._conditions(latents, actions, states, extrinsics, place)
        x = self.predictor_embed(latents).unflatten(1, (steps, -1))
        x = torch.cat((conditions.to(x.dtype), x), dim=2).flatten(1, 2)
        coordinates = step_coordinates(place, conditions.shape[2], self.rope, x.device, start)
        head_dim = self.config.embed_dim // self.config.num_heads
        return x, coordinate_table(coordinates[None], head_dim, self.rope.frequencies), steps

    def _wanted(self, latents: Tensor, steps: int) -> list[int | None]:
        """How many of a step's last tokens leave each block (None: all). Of the last block's, conditioning tokens are
        only needed as keys and values: what is put out are latents."""
        return [None] * (self.config.depth - 1) + [latents.shape[1] // steps]

    def _put_out(self, x: Tensor) -> Tensor:
        return self.predictor_proj(self.predictor_norm(x))

    @property
    def num_conditions(self) -> int:
        """Conditioning tokens per step."""
        return 1 + (self.state_encoder is not None) + self.config.use_extrinsics

    def _conditions(
        self, latents: Tensor, actions: Tensor, states: Tensor | None, extrinsics: Tensor | None, grid: TokenGrid
    ) -> Tensor:
        """Conditioning tokens ``[B, T, K, P]``, after a check of all shapes."""
        if latents.shape[1] != grid.size:
            raise ValueError(
                f"{latents.shape[1]} latents are not {grid.t} steps (as actions {list(actions.shape)} say) of "
                f"{grid.h} x {grid.w} tokens"
            )
        lead = (len(latents), grid.t)
        parts = [self.action_encoder(_checked("actions", actions, (*lead, self.action_dim)))]
        if self.state_encoder is not None:
            if states is None:
                raise ValueError(f"this action predictor was trained with states: give states [B, T, {self.state_dim}]")
            parts.append(self.state_encoder(_checked("states", states, (*lead, self.state_dim))))
        elif states is not None:
            raise ValueError("this action predictor was trained without states: leave states out")
        if self.config.use_extrinsics:
            assert self.extrinsics_encoder is not None
            if extrinsics is None:
                raise ValueError("this action predictor was trained with camera extrinsics: give extrinsics [B, T, E]")
            shape = (*lead, self.config.extrinsics_dim)
            parts.append(self.extrinsics_encoder(_checked("extrinsics", extrinsics, shape)))
        elif extrinsics is not None:
            raise ValueError("this action predictor was trained without camera extrinsics: leave extrinsics out")
        return torch.stack(parts, dim=2)


def _checked(name: str, value: Tensor, shape: tuple[int, ...]) -> Tensor:
    if tuple(value.shape) != shape:
        raise ValueError(f"{name} must be {list(shape)}, not {list(value.shape)}")
    return value


def step_coordinates(
    grid: TokenGrid, num_conditions: int, rope: RopeConfig, device: torch.device, start: int = 0
) -> Tensor:
    """Coordinates (t, h, w) of every step's conditioning tokens, then its patches: float32 ``[T * (K + h*w), 3]``.

    ``start``: time of the first step.
    """
    patches = grid.coordinates(grid.ids(device)).float()
    patches = patches * patches.new_tensor([1.0, rope.scale(grid.h), rope.scale(grid.w)])
    patches = patches.unflatten(0, (grid.t, -1))  # [T, h*w, 3]
    conditions = torch.zeros(grid.t, num_conditions, 3, device=device)
    conditions[:, :, 0] = torch.arange(grid.t, device=device)[:, None]
    place = torch.cat((conditions, patches), dim=1).flatten(0, 1)
    return place + place.new_tensor([start, 0.0, 0.0]) if start else place
