"""Which model of timm, as a config and as a word on a command line: ``timm:NAME[@FILE][?OPTIONS]``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from jepa.config import suggest

PREFIX = "timm:"
TemporalPool = Literal["none", "mean"]
Pool = Literal["none", "token", "model"]
_OPTIONS: dict[str, tuple[str, Callable[[str], Any], str]] = {
    "frames": ("num_frames", int, "a whole number"), "fps": ("fps", float, "a number"),
    "time": ("temporal_pool", str, "a word"), "pool": ("pool", str, "a word"),
    "size": ("size", int, "a whole number of pixels"),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class TimmConfig:
    """``name``: architecture and tag of the weights, as timm writes them (``vit_small_patch14_dinov2.lvd142m``).

    ``temporal_pool``: "none" keeps the tokens of every frame (``grid.t`` = T), "mean" averages them over the frames
    of the clip (``grid.t`` = 1). ``pool``: "none" keeps patch tokens, or the cells of the last feature map; "token" is
    the class token of every frame; "model" is the vector that timm's own classifier of this model would see (class
    token, mean, or attention pooling). The last two make a grid of one cell per frame.
    """

    kind: Literal["timm"] = "timm"
    name: str
    temporal_pool: TemporalPool = "none"
    pool: Pool = "none"

    def __post_init__(self) -> None:
        for key, value, known in (
            ("temporal_pool", self.temporal_pool, get_args(TemporalPool)), ("pool", self.pool, get_args(Pool)),
        ):  # fmt: skip
            if value not in known:
                raise ValueError(f"{key} {value!r} of a timm model is unknown{suggest(str(value), known)}")


def parse_timm_name(text: str) -> dict[str, Any]:
    """Arguments of ``timm_encoder`` from, for example, ``timm:vit_small_patch14_dinov2?frames=8&time=mean&size=224``.

    ``FILE`` holds the weights; it is everything between ``@`` and ``?``. Options: ``frames`` and ``fps`` of a clip,
    ``time`` (none, mean), ``pool`` (none, token, model), ``size`` in pixels. Raises ``ValueError`` for anything else.
    """
    name, _, query = text.removeprefix(PREFIX).partition("?")
    name, at, file = name.partition("@")
    if not name or (at and not file):
        raise ValueError(f"{text!r} must look like {PREFIX}NAME, {PREFIX}NAME@FILE or {PREFIX}NAME?frames=8&time=mean")
    chosen: dict[str, Any] = {"name": name, "weights_file": file or None}
    for pair in query.split("&") if query else []:
        key, _, value = pair.partition("=")
        if key not in _OPTIONS:
            raise ValueError(f"{text}: option {key!r} is unknown{suggest(key, _OPTIONS)}")
        argument, cast, wanted = _OPTIONS[key]
        if argument in chosen:
            raise ValueError(f"{text}: option {key!r} is given twice")
        try:
            chosen[argument] = cast(value)
        except ValueError:
            raise ValueError(f"{text}: option {key} must be {wanted}, not {value!r}") from None
    return chosen
