"""Keys and buttons to actions: the axes of a real action, or the codes of a latent-action model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from jepa.planning.space import ActionSpace

# keys (KeyboardEvent.code) of the axes in turn: what lowers the number, then what raises it (y grows downwards)
_AXES = (
    ("left", ("ArrowLeft", "KeyA"), "right", ("ArrowRight", "KeyD")),
    ("up", ("ArrowUp", "KeyW"), "down", ("ArrowDown", "KeyS")),
    ("axis 2 -", ("KeyQ",), "axis 2 +", ("KeyE",)),
    ("axis 3 -", ("KeyF",), "axis 3 +", ("KeyR",)),
    ("axis 4 -", ("KeyG",), "axis 4 +", ("KeyT",)),
    ("axis 5 -", ("KeyH",), "axis 5 +", ("KeyY",)),
    ("axis 6 -", ("KeyJ",), "axis 6 +", ("KeyU",)),
)


class PlayError(ValueError):
    """What was asked of the game does not fit it; says what does."""


class Control(NamedTuple):
    """A button and the keys that press it (``KeyboardEvent.code``); ``name`` is what requests call it."""

    name: str
    keys: tuple[str, ...]


class Steering(Protocol):
    """``controls``: what can be pressed. ``idle``: whether an action is known for nothing pressed. ``graded``: whether
    a push can be weaker."""

    controls: tuple[Control, ...]
    idle: bool
    graded: bool

    def action(self, pressed: Sequence[str], strength: float = 1.0) -> Tensor: ...


class AxisSteering:
    """Real actions: every axis has a control for either direction. Nothing pressed is the middle of the box; axes that
    cannot move have no control, and those beyond the seventh have no key."""

    idle, graded = True, True

    def __init__(self, space: ActionSpace) -> None:
        self.space = space
        self._axes: dict[str, tuple[int, float]] = {}
        controls = []
        for axis in torch.nonzero(space.half_range > 0).flatten().tolist():
            low, low_keys, high, high_keys = _AXES[axis] if axis < len(_AXES) else _keyless(axis)
            controls += [Control(low, low_keys), Control(high, high_keys)]
            self._axes |= {low: (axis, -1.0), high: (axis, 1.0)}
        if not controls:
            raise PlayError("no axis of these actions can move: there is nothing to steer")
        self.controls = tuple(controls)

    def action(self, pressed: Sequence[str], strength: float = 1.0) -> Tensor:
        """``[A]``: opposite controls cancel. ``strength``: share of the way from the middle of the box to its edge.

        Raises ``PlayError`` for an unknown control or a strength outside 0 to 1.
        """
        if not 0 <= strength <= 1:
            raise PlayError(f"strength must lie between 0 and 1, not {strength:g}")
        direction = torch.zeros(self.space.dim)
        for name in _known(pressed, self.controls):
            axis, sign = self._axes[name]
            direction[axis] += sign
        return self.space.clip(self.space.centre + strength * direction * self.space.half_range)


class CodeSteering:
    """Latent actions: a control per code ``[K, Z]``, the first ten also by the digits."""

    idle, graded = False, False

    def __init__(self, codes: Tensor) -> None:
        self.codes = codes.detach().float().cpu()
        self.controls = tuple(Control(str(k), (f"Digit{k}", f"Numpad{k}") if k < 10 else ()) for k in range(len(codes)))

    def action(self, pressed: Sequence[str], strength: float = 1.0) -> Tensor:
        """``[Z]``: the code that was pressed last. Raises ``PlayError`` for none, or an unknown one."""
        names = _known(pressed, self.controls)
        if not names:
            raise PlayError(f"press a code, 0 to {len(self.codes) - 1}: without one no latent action is known")
        return self.codes[int(names[-1])]


def _keyless(axis: int) -> tuple[str, tuple[str, ...], str, tuple[str, ...]]:
    return f"axis {axis} -", (), f"axis {axis} +", ()


def _known(pressed: Sequence[str], controls: Sequence[Control]) -> Sequence[str]:
    names = [control.name for control in controls]
    unknown = [name for name in pressed if name not in names]
    if unknown:
        raise PlayError(f"there is no control {unknown[0]!r}; there are {', '.join(names)}")
    return pressed
