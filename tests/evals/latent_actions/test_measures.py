"""The measures on worlds where the right answer is known: a perfect model, one that copies, one that says nothing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from evals.latent_actions.measures import (
    cycle,
    derangement,
    leakage,
    other_videos,
    prediction_errors,
    usage,
)

MOVES = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
CLIPS, STEPS = 24, 4


def world(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Latents ``[N, T, 1, 6]``: a place that one of four moves changes, and four numbers that belong to the video and
    never change; and the moves' numbers ``[N, T-1]``."""
    generator = torch.Generator().manual_seed(seed)
    moves = torch.arange(CLIPS * STEPS).view(CLIPS, STEPS) % 4  # each as often
    moves = moves.flatten()[torch.randperm(CLIPS * STEPS, generator=generator)].view(CLIPS, STEPS)
    start = 10 * torch.randn(CLIPS, 1, 2, generator=generator)
    place = torch.cat((start, start + MOVES[moves].cumsum(dim=1)), dim=1)
    scene = 5 * torch.randn(CLIPS, 1, 4, generator=generator).expand(-1, STEPS + 1, -1)
    return torch.cat((place, scene), dim=-1)[:, :, None], moves


class Perfect:
    """The four moves as codes, added to the place."""

    codes: Tensor | None = MOVES

    def infer(self, latents: Tensor) -> Tensor:
        change = latents[:, 1:, 0, :2] - latents[:, :-1, 0, :2]
        return MOVES[torch.cdist(change.flatten(0, 1), MOVES).argmin(dim=1)].unflatten(0, change.shape[:2])

    def predict(self, latents: Tensor, actions: Tensor) -> Tensor:
        moved = latents.clone()
        moved[:, :, 0, :2] += actions
        return moved


class Leaky:
    """The action is the next frame."""

    codes: Tensor | None = None

    def infer(self, latents: Tensor) -> Tensor:
        return latents[:, 1:, 0]

    def predict(self, latents: Tensor, actions: Tensor) -> Tensor:
        return actions[:, :, None]


class Collapsed(Perfect):
    """One code for everything, and predictions that do not listen."""

    def infer(self, latents: Tensor) -> Tensor:
        return MOVES[:1].expand(len(latents), latents.shape[1] - 1, 2)

    def predict(self, latents: Tensor, actions: Tensor) -> Tensor:
        return latents


class Crooked(Perfect):
    """Codes that only ever go forth: the way back is inferred as the opposite move, but applied half."""

    def predict(self, latents: Tensor, actions: Tensor) -> Tensor:
        half = torch.where((actions < 0).any(dim=-1, keepdim=True), 0.5, 1.0)
        return super().predict(latents, actions * half)


def test_a_perfect_model() -> None:
    latents, _ = world()
    model = Perfect()
    actions = model.infer(latents)
    errors = prediction_errors(model, latents, actions)
    step = 1 / 6  # one of six numbers changes by 1
    assert errors.inferred == pytest.approx(0, abs=1e-6)
    assert errors.copy == pytest.approx(step, abs=1e-5)
    assert errors.zero == pytest.approx(step, abs=1e-5)
    # of four codes one is right, the opposite one is off by 2, the two across by 1 + 1: 1.5 on average, of 6 numbers
    assert errors.random == pytest.approx(1.5 / 6, rel=0.15)
    assert errors.controllability == pytest.approx(1, abs=1e-4)
    found = leakage(model, latents, torch.arange(CLIPS))
    assert found.natural == pytest.approx(0, abs=1e-6)
    assert abs(found.leakage) < 0.05  # a move of one does not bring another video nearer
    forth_and_back = cycle(model, latents)
    assert forth_and_back.forth == pytest.approx(0, abs=1e-6)
    assert forth_and_back.back == pytest.approx(0, abs=1e-6)
    shares, perplexity = usage(actions, MOVES)
    assert shares.tolist() == pytest.approx([0.25] * 4)
    assert perplexity == pytest.approx(4)


def test_an_action_that_copies_the_next_frame_is_caught_by_leakage() -> None:
    latents, _ = world()
    model = Leaky()
    errors = prediction_errors(model, latents, model.infer(latents))
    assert (errors.inferred, errors.random) == (0, None)
    assert errors.controllability == 1  # by the shuffled actions of other clips; no measure but leakage finds it
    found = leakage(model, latents, torch.arange(CLIPS))
    assert (found.cut, found.natural, found.leakage) == (0, 0, 1)
    assert found.blind > 2


def test_an_action_that_says_nothing_is_caught_by_error_control_and_perplexity() -> None:
    latents, _ = world()
    model = Collapsed()
    actions = model.infer(latents)
    errors = prediction_errors(model, latents, actions)
    assert errors.inferred == errors.copy == errors.zero == errors.random
    assert errors.controllability == 0
    assert leakage(model, latents, torch.arange(CLIPS)).leakage == 0
    assert usage(actions, MOVES)[1] == pytest.approx(1)
    assert cycle(model, latents)[1] == 0  # it never left A


def test_the_cycle_finds_an_action_that_does_not_lead_back() -> None:
    latents, moves = world()
    found = cycle(Crooked(), latents)
    # forth along a negative axis: 0.5 short, then 1 back: 0.5 off; along a positive one: exact, then 0.5 back
    negative = float((moves[:, 0] % 2 == 1).double().mean())
    assert found.forth == pytest.approx(negative * 0.5 / 6, abs=1e-5)
    assert found.back == pytest.approx(0.5 / 6, abs=1e-5)
    assert found.ratio == pytest.approx(1 / negative, rel=1e-3)


def test_chunks_do_not_matter() -> None:
    latents, _ = world()
    many = torch.cat([latents] * 3)  # more than one chunk
    model = Crooked()
    assert cycle(model, many) == pytest.approx(cycle(model, latents))
    one, three = (prediction_errors(model, x, model.infer(x)) for x in (latents, many))
    assert one.inferred == pytest.approx(three.inferred)


def test_partners() -> None:
    for count in (2, 3, 17):
        order = derangement(count, torch.Generator().manual_seed(count))
        assert sorted(order.tolist()) == list(range(count))
        assert not (order == torch.arange(count)).any()
    with pytest.raises(ValueError, match="actions of other clips are needed, but there is 1 clip"):
        derangement(1, torch.Generator())
    videos = torch.tensor([0, 0, 0, 1, 1, 2])
    assert (videos[other_videos(videos, torch.Generator().manual_seed(0))] != videos).all()
    with pytest.raises(ValueError, match="scene cuts need clips of at least 2 videos"):
        other_videos(torch.zeros(3), torch.Generator())
