"""The evals by name. A task is a function from an ``EvalConfig`` to its rows and timings."""

from __future__ import annotations

from collections.abc import Callable

from evals.settings import EvalConfig, TaskResult
from evals.tasks.anticipation import anticipate
from evals.tasks.dense import predict_densely
from evals.tasks.image import classify_images
from evals.tasks.latent_action import measure_actions
from evals.tasks.physics import judge_physics
from evals.tasks.reconstruction import reconstruct
from evals.tasks.retrieval import retrieve
from evals.tasks.tracking import track
from evals.tasks.video import classify_videos
from evals.tasks.world_model import measure_world_model

TASKS: dict[str, Callable[[EvalConfig], TaskResult]] = {
    "video": classify_videos,
    "image": classify_images,
    "anticipation": anticipate,
    "physics": judge_physics,
    "retrieval": retrieve,
    "tracking": track,
    "dense": predict_densely,
    "latent_action": measure_actions,
    "world_model": measure_world_model,
    "reconstruction": reconstruct,
}
