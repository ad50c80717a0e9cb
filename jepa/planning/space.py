"""The actions that a planner may choose: bounds, clips, a longest step, axes that stay still.

Shape legend: N samples, H steps, A action axes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ActionSpace:
    """A box ``low`` to ``high`` (float32 ``[A]``), in the units of the actions.

    A frozen axis is one with ``low == high``. ``max_norm``: the largest Euclidean length of a step, over the axes where
    ``norm_axes`` (bool ``[A]``) is true; longer steps are shortened. V-JEPA 2-AC restricts the displacement of the
    gripper like that (arXiv 2506.09985, section 4.2). Make one by ``action_space``.
    """

    low: Tensor
    high: Tensor
    max_norm: float | None
    norm_axes: Tensor

    @property
    def dim(self) -> int:
        """Number of action axes, A."""
        return len(self.low)

    @property
    def centre(self) -> Tensor:
        """``[A]``: the middle of the box."""
        return (self.low + self.high) / 2

    @property
    def half_range(self) -> Tensor:
        """``[A]``: half the width of the box; 0 on a frozen axis."""
        return (self.high - self.low) / 2

    def to(self, device: torch.device | str) -> ActionSpace:
        """The same on ``device``."""
        low, high, axes = (value.to(device) for value in (self.low, self.high, self.norm_axes))
        return ActionSpace(low=low, high=high, max_norm=self.max_norm, norm_axes=axes)

    def clip(self, actions: Tensor) -> Tensor:
        """Actions ``[..., A]`` brought inside: first into the box, then to ``max_norm``. Differentiable inside."""
        boxed = torch.minimum(torch.maximum(actions, self.low), self.high)
        if self.max_norm is None:
            return boxed
        length = (boxed * self.norm_axes).square().sum(dim=-1, keepdim=True).clamp_min(1e-24).sqrt()
        share = (self.max_norm / length).clamp_max(1.0)
        return torch.where(self.norm_axes, boxed * share, boxed)

    def sample(self, count: int, horizon: int, generator: torch.Generator | None = None) -> Tensor:
        """Uniform in the box, then clipped: ``[count, horizon, A]``."""
        shape = (count, horizon, self.dim)
        draws = torch.rand(shape, generator=generator, device=self.low.device, dtype=self.low.dtype)
        return self.clip(self.low + draws * (self.high - self.low))


def action_space(
    low: Tensor | Sequence[float],
    high: Tensor | Sequence[float],
    *,
    clip: Sequence[float] | float | None = None,
    max_norm: float | None = None,
    norm_axes: Sequence[int] | None = None,
    frozen: Mapping[int, float] | None = None,
) -> ActionSpace:
    """A space with bounds ``low`` and ``high`` ``[A]``, narrowed by what follows.

    ``clip``: the largest size of an action, per axis (or one for all). ``max_norm``: the largest Euclidean length of a
    step over ``norm_axes`` (None: all axes that are not frozen). ``frozen``: axis -> the value that it keeps.

    Raises ``ValueError`` for bounds that are empty or not finite, values outside them, and axes that do not exist.
    """
    lower, upper = (torch.as_tensor(value, dtype=torch.float32).clone() for value in (low, high))
    if lower.dim() != 1 or lower.shape != upper.shape or not len(lower):
        raise ValueError(f"low and high must be two lists of one length, not {list(lower.shape)}, {list(upper.shape)}")
    for name, bound in (("low", lower), ("high", upper)):
        if not bool(bound.isfinite().all()):
            raise ValueError(f"{name} is {_list(bound)}: planning needs finite bounds on every action axis")
    if bool((lower > upper).any()):
        raise ValueError(f"low {_list(lower)} must not be above high {_list(upper)}")
    if clip is not None:
        lower, upper = _clipped(lower, upper, clip)
    axes = len(lower)
    for axis, value in (frozen or {}).items():
        if not 0 <= axis < axes:
            raise ValueError(f"frozen names axis {axis}, but the actions have axes 0 to {axes - 1}")
        if not lower[axis] <= value <= upper[axis]:
            raise ValueError(f"frozen axis {axis} at {value:g} is outside {lower[axis]:g} to {upper[axis]:g}")
        lower[axis] = upper[axis] = value
    counted = _counted(lower, upper, max_norm, norm_axes)
    return ActionSpace(low=lower, high=upper, max_norm=max_norm, norm_axes=counted)


def franka_space(step_m: float = 0.05, gripper: float = 0.75) -> ActionSpace:
    """The 7-d actions that V-JEPA 2-AC plans with: changes of position (metres, at most ``step_m`` per axis), of
    orientation (radians; kept at 0) and of the gripper (0 open, 1 closed; at most ``gripper``).

    Source: arXiv 2506.09985, section 4.2, and its released planner.
    """
    high = [step_m] * 3 + [0.0] * 3 + [gripper]
    return action_space([-value for value in high], high)


def _clipped(lower: Tensor, upper: Tensor, clip: Sequence[float] | float) -> tuple[Tensor, Tensor]:
    sizes = torch.as_tensor(clip, dtype=torch.float32)
    if sizes.dim() > 0 and sizes.shape != lower.shape:
        raise ValueError(f"clip has {len(sizes)} values, but the actions have {len(lower)} axes")
    if not bool((sizes >= 0).all()):
        raise ValueError(f"clip {_list(sizes)} must not be negative")
    lower, upper = torch.maximum(lower, -sizes), torch.minimum(upper, sizes)
    if bool((lower > upper).any()):
        raise ValueError(f"clip {_list(sizes)} leaves no action on axis {int((lower > upper).int().argmax())}")
    return lower, upper


def _counted(lower: Tensor, upper: Tensor, max_norm: float | None, norm_axes: Sequence[int] | None) -> Tensor:
    """Bool ``[A]``: the axes whose length is bounded."""
    if max_norm is None:
        if norm_axes is not None:
            raise ValueError("norm_axes has no meaning without max_norm: set it, or leave norm_axes out")
        return torch.zeros(len(lower), dtype=torch.bool)
    if not (math.isfinite(max_norm) and max_norm > 0):
        raise ValueError(f"max_norm must be positive, not {max_norm:g}")
    counted = lower < upper
    if norm_axes is not None:
        wrong = [axis for axis in norm_axes if not 0 <= axis < len(lower)]
        if wrong:
            raise ValueError(f"norm_axes names axis {wrong[0]}, but the actions have axes 0 to {len(lower) - 1}")
        counted = torch.zeros(len(lower), dtype=torch.bool)
        counted[list(norm_axes)] = True
    if bool(((lower > 0) | (upper < 0))[counted].any()):
        raise ValueError(
            f"max_norm shortens steps towards 0, which is outside low {_list(lower)}, high {_list(upper)}: "
            "leave such axes out of norm_axes"
        )
    return counted


def _list(values: Tensor) -> list[float]:
    flat: list[float] = values.double().reshape(-1).tolist()
    return [round(value, 6) for value in flat]


def check_units(space: ActionSpace, low: Tensor, high: Tensor) -> None:
    """Raise ``ValueError`` where ``space`` cannot be in the units of a model whose data lay between ``low`` and
    ``high`` ``[A]``: no overlap, or an axis more than ten times as wide. (A narrower one is only careful.)"""
    own = (space.low.cpu(), space.high.cpu())
    low, high = low.detach().cpu().float(), high.detach().cpu().float()
    wide = (own[1] - own[0]) > 10 * (high - low)
    apart = (own[0] > high) | (own[1] < low)
    for axis in torch.nonzero((wide | apart) & (high > low)).flatten().tolist():
        raise ValueError(
            f"axis {axis} of the actions lies in [{own[0][axis]:g}, {own[1][axis]:g}], but the model was trained on "
            f"actions in [{low[axis]:g}, {high[axis]:g}]: other units? If they are the same, narrow the space "
            "(--set space.low=[...] --set space.high=[...])"
        )
