"""Success rates and times of many episodes."""

from __future__ import annotations

import numpy as np
import pytest

from jepa.planning.agents import Decision
from jepa.planning.episodes import EpisodeResult, summarise, wilson


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (10, 10, 0.7225, 1.0), (81, 263, 0.2553, 0.3662)],
)  # the last one: Newcombe, Statistics in Medicine 17 (1998), table I
def test_wilson_against_published_values(successes: int, trials: int, low: float, high: float) -> None:
    np.testing.assert_allclose(wilson(successes, trials), (low, high), atol=1e-4)


def test_wilson_refuses_what_is_no_rate() -> None:
    for pair in ((1, 0), (3, 2), (-1, 4)):
        with pytest.raises(ValueError, match=f"{pair[0]} of {pair[1]} is no success rate"):
            wilson(*pair)


def test_a_summary_counts_steps_of_successes_and_every_planned_action() -> None:
    def result(success: bool, steps: int, *ms: float) -> EpisodeResult:
        decisions = [Decision(k, t / 1000, np.zeros((1, 2), np.float32), None, None) for k, t in enumerate(ms)]
        return EpisodeResult(seed=0, success=success, steps=steps, decisions=decisions)

    summary = summarise("model", [result(True, 10, 1.0, 2.0), result(False, 50, 3.0), result(True, 20, 4.0, 15.0)])
    assert (summary.episodes, summary.successes, summary.mean_steps) == (3, 2, 15.0)
    assert (summary.median_ms, summary.p90_ms) == (pytest.approx(3.0), pytest.approx(10.6))
    assert (summary.low, summary.high) == wilson(2, 3)
    nothing = summarise("random", [result(False, 0)])
    assert (nothing.mean_steps, nothing.median_ms, nothing.success_rate) == (None, None, 0.0)
