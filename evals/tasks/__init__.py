"""The evals by name. A task is a function from an ``EvalConfig`` to its rows and timings."""

from __future__ import annotations

from collections.abc import Callable

from evals.settings import EvalConfig, TaskResult
from evals.tasks.dense import predict_densely
from evals.tasks.physics import judge_physics
from evals.tasks.retrieval import retrieve
from evals.tasks.tracking import track
from evals.tasks.video import classify_videos

TASKS: dict[str, Callable[[EvalConfig], TaskResult]] = {
    "video": classify_videos,
    "physics": judge_physics,
    "retrieval": retrieve,
    "tracking": track,
    "dense": predict_densely,
}
