"""What looks like collapse in the monitor's measurements: each rule looks at the first and the last of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

Rule = Callable[[Mapping[str, float], Mapping[str, float], int], str | None]


def _spread(first: Mapping[str, float], last: Mapping[str, float], count: int) -> str | None:
    if last["pooled_std"] < max(0.3 * first["pooled_std"], 1e-3):
        return (
            f"collapse: clips are losing their spread (pooled_std {last['pooled_std']:.3g}, at first "
            f"{first['pooled_std']:.3g})"
        )
    return None


def _rank(first: Mapping[str, float], last: Mapping[str, float], count: int) -> str | None:
    if last["rankme"] < max(0.3 * first["rankme"], 2.0):
        return f"collapse: features fill few dimensions (rankme {last['rankme']:.1f}, at first {first['rankme']:.1f})"
    return None


def _likeness(first: Mapping[str, float], last: Mapping[str, float], count: int) -> str | None:
    if last["cosine"] > max(0.99, 0.5 * (1 + first["cosine"])):
        return f"collapse: different clips get nearly the same features (mean cosine {last['cosine']:.4f})"
    return None


def _skill(first: Mapping[str, float], last: Mapping[str, float], count: int) -> str | None:
    if count > 2 and last.get("skill", 1.0) <= 0:
        errors = {name: value for name, value in last.items() if name.startswith("error") and "_h" not in name}
        found = ", ".join(f"{name.removeprefix('error_').replace('_', ' ')} {e:.3g}" for name, e in errors.items())
        return f"the predictor is no better than a constant ({found})"
    return None


_CALMER = "lower optim.lr.peak or lengthen its warm-up (pixels have no target encoder and no regularizer to turn)"
RULES: tuple[tuple[Rule, str, str | None], ...] = (  # a rule, what to turn for latents, what for pixels
    (_spread, "add objective.regularizer {kind: variance_covariance} or raise its weight, raise objective.momentum, or "
     "lower optim.lr.peak; without a regularizer a dip in the first one or two thousand steps can recover by itself",
     _CALMER),
    (_rank, "raise objective.regularizer.covariance_weight (or add that regularizer), or lower optim.lr.peak", _CALMER),
    (_likeness, "add objective.regularizer {kind: variance_covariance} with pooled above 0, or raise its weight", None),
    (_skill, "raise optim.lr.peak or objective.predictor.depth, or lower objective.momentum so that targets move on",
     "raise optim.lr.peak or objective.decoder.depth, or hide fewer places"),
)  # fmt: skip
