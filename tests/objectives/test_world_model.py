"""World models: against a slow formulation, who gets a gradient, what it costs, and how far it sees."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from made_worlds import world_settings
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from jepa.compiling import compile_parts, graphs_made
from jepa.config import ConfigError, from_dict, to_dict
from jepa.distributed import Run
from jepa.models.action_predictor import ActionPredictorConfig
from jepa.models.encoder import EncoderConfig
from jepa.models.latent_head import LatentConfig
from jepa.models.timm_config import TimmConfig
from jepa.monitor import CollapseMonitor, MonitorConfig, pictures
from jepa.objectives import (
    OBJECTIVES,
    SigRegConfig,
    VarianceCovarianceConfig,
    WorldModelConfig,
    WorldModelObjective,
    build_objective,
)
from jepa.objectives.horizons import horizon_errors
from jepa.objectives.world_config import FrozenConfig
from jepa.session import build, train_step
from jepa.train import TrainConfig
from jepa.types import Batch, ClipConfig, Statistics

CLIP = ClipConfig(num_frames=6, fps=4, crop_size=32)
ENCODER = EncoderConfig(embed_dim=48, depth=2, num_heads=4, patch_size=8, tubelet_size=1, init="xavier")
PREDICTOR = ActionPredictorConfig(embed_dim=24, depth=2, num_heads=2, action_dim=3, state_dim=4, init="xavier")
FROZEN: dict[str, Any] = {"encoder_from": "somewhere", "frozen": FrozenConfig(clip=CLIP)}
EMA: dict[str, Any] = {"momentum": (0.9, 1.0)}
REGULARIZED: dict[str, Any] = {"regularizer": VarianceCovarianceConfig(), "latent": LatentConfig(pool=(2, 2), dim=8)}
KINDS = {"frozen": FROZEN, "ema": EMA, "regularized": REGULARIZED}


def make(**options: Any) -> tuple[WorldModelObjective, Batch]:
    torch.manual_seed(0)
    objective = build_objective(WorldModelConfig(**{"predictor": PREDICTOR, **options}), ENCODER, CLIP, 0)
    assert isinstance(objective, WorldModelObjective)
    if objective.follows:  # so that the two encoders differ
        for parameter in (*objective.encoder.parameters(), *objective.head.parameters()):
            parameter.data += 0.02 * torch.randn_like(parameter)
    objective.set_statistics(
        Statistics(*[torch.full((3,), v) for v in (0.5, 2.0, -1.0, 1.0)], torch.ones(4), torch.full((4,), 3.0))
    )
    batch = Batch(torch.randn(3, 3, 6, 32, 32), actions=torch.randn(3, 5, 3), states=torch.randn(3, 6, 4))
    return objective, batch


@torch.no_grad()
def slow_terms(objective: WorldModelObjective, batch: Batch, measure: Any) -> tuple[float, float]:
    """One clip, one step at a time, from the start of the clip each time; without any memory."""
    config, forced, rolled = objective.config, [], []
    assert batch.actions is not None
    assert batch.states is not None
    for clip, raw_actions, raw_states in zip(batch.clip, batch.actions, batch.states, strict=True):

        def latents_of(encoder: Any, head: Any, clip: Tensor = clip) -> list[Tensor]:
            tokens = [encoder(clip[None, :, t : t + 1])[0] for t in range(6)]
            if config.latent.pool != "none":
                tokens = [x.unflatten(0, (2, 2, 2, 2)).mean(dim=(1, 3)).flatten(0, 1) for x in tokens]
            if head.proj is not None:
                tokens = [head.proj(x) for x in tokens]
            return [F.layer_norm(x, x.shape[-1:]) for x in tokens]

        own = latents_of(objective.encoder, objective.head)
        truth = latents_of(objective.target_encoder, objective.target_head)
        actions, states = (raw_actions - 0.5) / 2, (raw_states - 1) / 3

        def predict(sequence: list[Tensor], actions: Tensor = actions, states: Tensor = states) -> Tensor:
            count = len(sequence)
            found = objective.predictor(
                torch.cat(sequence)[None], actions[None, :count], states[None, :count], grid=objective.head.grid
            )[0, -len(sequence[0]) :]
            return F.layer_norm(found, found.shape[-1:])

        forced += [measure(predict(own[: k + 1]) - truth[k + 1]) for k in range(5)]
        sequence = own[: config.rollout_context]
        for _ in range(config.rollout_steps):
            sequence = [*sequence, predict(sequence)]
            rolled.append(measure(sequence[-1] - truth[len(sequence) - 1]))
    return torch.stack(forced).mean().item(), torch.stack(rolled).mean().item()


@pytest.mark.parametrize("rollout", [(1, 1), (3, 1), (2, 3)])
@pytest.mark.parametrize("kind", list(KINDS))
def test_the_loss_equals_a_slow_recomputation(kind: str, rollout: tuple[int, int]) -> None:
    steps, context = rollout
    objective, batch = make(
        **KINDS[kind], rollout_steps=steps, rollout_context=context, teacher_weight=0.7, rollout_weight=0.4
    )
    loss = objective(batch, 0.0)
    forced, rolled = slow_terms(objective, batch, lambda gap: gap.abs().mean())
    assert loss.terms["prediction"].item() == pytest.approx(forced, rel=1e-4)
    assert loss.terms["rollout"].item() == pytest.approx(rolled, rel=1e-4)
    extra = 0.5 * loss.terms["variance_tokens"] + 0.04 * loss.terms["covariance_tokens"] if kind == "regularized" else 0
    assert loss.total.item() == pytest.approx(0.7 * forced + 0.4 * rolled + float(extra), rel=1e-4)
    assert not any(term.requires_grad for term in loss.terms.values())


@pytest.mark.parametrize(("measure", "formula"), [
    ("mse", lambda gap: gap.square().mean()),
    ("smooth_l1", lambda gap: torch.where(gap.abs() < 1, 0.5 * gap**2, gap.abs() - 0.5).mean()),
])  # fmt: skip
def test_other_measures_equal_their_formulas(measure: Any, formula: Any) -> None:
    objective, batch = make(**EMA, loss=measure)
    forced, rolled = slow_terms(objective, batch, formula)
    assert objective(batch, 0.0).total.item() == pytest.approx(forced + rolled, rel=1e-4)


def test_no_rollout_and_one_of_any_length() -> None:
    objective, batch = make(**EMA, rollout_steps=0)
    assert set(objective(batch, 0.0).terms) == {"prediction", "momentum"}
    objective, batch = make(**EMA, rollout_steps=5)
    assert "rollout" in objective(batch, 0.0).terms
    with pytest.raises(ConfigError, match=r"rollout_steps 5 after rollout_context 2 needs clips of 7 frames.* is 6"):
        make(**EMA, rollout_steps=5, rollout_context=2)


@pytest.mark.parametrize("kind", [*KINDS, "inverse"])
def test_every_trainable_parameter_gets_a_gradient_and_no_other(kind: str) -> None:
    options = {**REGULARIZED, "inverse_weight": 0.5} if kind == "inverse" else KINDS[kind]
    objective, batch = make(**options)
    objective(batch, 0.0).total.backward()
    for name, parameter in objective.named_parameters():
        still = name.startswith("target_") or (kind == "frozen" and name.startswith("encoder."))
        assert parameter.requires_grad != still, name
        assert (parameter.grad is not None and parameter.grad.abs().max() > 0) != still, name


def test_a_frozen_encoder_stays_in_eval_mode_and_has_one_name_in_the_state() -> None:
    objective, _ = make(**FROZEN)
    objective.train()
    assert objective.training
    assert not any(module.training for module in objective.encoder.modules())
    assert objective.target_encoder is objective.encoder
    assert not any(name.startswith(("target_", "learner", "world_model")) for name in objective.state_dict())
    follower, _ = make(**EMA)
    assert follower.train().encoder.training
    assert any(name.startswith("target_encoder.") for name in follower.state_dict())


def test_after_step_moves_target_encoder_and_head() -> None:
    objective, _ = make(**EMA, latent=LatentConfig(dim=8), momentum_schedule="linear")
    pairs = [(objective.target_encoder, objective.encoder), (objective.target_head, objective.head)]
    old = [[p.detach().clone() for p in target.parameters()] for target, _ in pairs]
    objective.after_step(0.5)
    for before, (target, online) in zip(old, pairs, strict=True):
        for was, leader, now in zip(before, online.parameters(), target.parameters(), strict=True):
            torch.testing.assert_close(now.detach(), 0.95 * was + 0.05 * leader.detach())
    make(**FROZEN)[0].after_step(0.5)


def test_gradients_flow_into_targets_only_without_an_ema() -> None:
    for options, flows in ((EMA, False), (REGULARIZED, True)):
        objective, batch = make(**options)
        assert objective.latents(batch.clip)[1].requires_grad == flows


def test_actions_are_read_from_two_frames() -> None:
    objective, batch = make(**REGULARIZED, inverse_weight=2.0)
    loss = objective(batch, 0.0)
    assert objective.action_reader is not None
    assert batch.actions is not None
    with torch.no_grad():
        latents = objective.learner.encode(batch.clip).flatten(2)
        reader = objective.action_reader
        read = reader.fc2(F.gelu(reader.fc1(torch.cat((latents[:, :-1], latents[:, 1:]), dim=-1))))
    expected = (read - (batch.actions - 0.5) / 2).square().mean().item()
    assert loss.terms["inverse"].item() == pytest.approx(expected, rel=1e-4)


def test_the_change_from_frame_to_frame_is_paid_for() -> None:
    plain, batch = make(**EMA)
    objective, _ = make(**EMA, similarity_weight=3.0)
    latents = objective.learner.encode(batch.clip).detach()
    change = sum((latents[:, k + 1] - latents[:, k]).square().mean().item() for k in range(5)) / 5
    loss = objective(batch, 0.0)
    assert loss.terms["change"].item() == pytest.approx(change, rel=1e-4)
    assert loss.total.item() == pytest.approx(plain(batch, 0.0).total.item() + 3.0 * change, rel=1e-4)


def test_the_regularizer_sees_each_frame_as_one_sample() -> None:
    """Constant but different vectors at every place would pass if places were samples."""
    objective, batch = make(**REGULARIZED)
    latents = torch.randn(1, 1, 4, 8).expand(3, 6, -1, -1).clone().requires_grad_()
    objective.latents = lambda clip: (latents, latents[:, 1:])  # type: ignore[method-assign]
    assert objective(batch, 0.0).terms["variance_tokens"].item() == pytest.approx(1.0 - 0.01, abs=1e-3)


def test_the_regularizer_sees_what_changes_within_clips() -> None:
    """Latents that are constant within clips and differ between them pass as a whole, and not within."""
    objective, batch = make(**REGULARIZED, within_weight=3.0, within_std=0.5)
    still = 3.0 * torch.randn(3, 1, 4, 8).expand(-1, 6, -1, -1)
    objective.latents = lambda clip: (still, still[:, 1:])  # type: ignore[method-assign]
    loss = objective(batch, 0.0)
    assert loss.terms["variance_tokens"].item() < 0.2
    assert loss.terms["variance_tokens_within"].item() == pytest.approx(1.0 - 0.01, abs=1e-3)
    moving = still + torch.tensor([0.5, -0.5, 0.5, -0.5, 0.5, -0.5])[:, None, None] * torch.randn(4, 8).sign()
    objective.latents = lambda clip: (moving, moving[:, 1:])  # type: ignore[method-assign]
    terms = objective(batch, 0.0).terms
    assert terms["variance_tokens_within"].item() == pytest.approx(0.0, abs=1e-6), "a spread of within_std is enough"
    plain, _ = make(**REGULARIZED)
    plain.latents = objective.latents  # type: ignore[method-assign]
    extra = 3.0 * (0.5 * terms["variance_tokens_within"] + 0.04 * terms["covariance_tokens_within"])
    plain.load_state_dict(objective.state_dict())
    expected = plain(batch, 0.0).total.item() + extra.item()
    assert objective(batch, 0.0).total.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("options", [
    FROZEN, EMA, {**EMA, "similarity_weight": 1.0}, {**FROZEN, "rollout_steps": 0, "window": 2},
    {**EMA, "rollout_steps": 3, "rollout_context": 3, "window": 2},
    {**EMA, "latent": LatentConfig(pool="keypoints", dim=3, layer_norm=False)},
    {**EMA, "latent": LatentConfig(pool=(2, 2), dim=8)}, {**EMA, "rollout_weight": 0.0},
])  # fmt: skip
def test_flops_are_those_that_torch_counts(options: dict[str, Any]) -> None:
    objective, batch = make(**options)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        objective(batch, 0.0).total.backward()
    assert objective.work(batch).flops == counter.get_total_flops()


def test_work_is_that_of_cropped_clips() -> None:
    """It is asked for a batch as the loader made it, decoded a little larger than the crop."""
    objective, batch = make(**EMA)
    raw = replace(batch, clip=torch.zeros(*batch.clip.shape[:3], 37, 41, dtype=torch.uint8))
    assert objective.work(raw) == objective.work(batch)


def test_flops_of_a_trained_encoder_with_its_regularizer_left_out() -> None:
    objective, batch = make(**REGULARIZED, inverse_weight=1.0)
    work = objective.work(batch)
    object.__setattr__(objective.config, "regularizer", None)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        objective(batch, 0.0).total.backward()
    assert work.flops == counter.get_total_flops()
    assert work.tokens == 3 * 6 * 16


def test_a_frozen_timm_model_and_its_flops() -> None:
    frozen = FrozenConfig(clip=ClipConfig(num_frames=1, crop_size=32), timm=TimmConfig(name="test_vit"))
    objective, batch = make(encoder_from="timm:test_vit", frozen=frozen)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        loss = objective(batch, 0.0)
        loss.total.backward()
    assert objective.work(batch).flops == pytest.approx(counter.get_total_flops(), rel=1e-6)
    assert objective.head.grid == objective.encoder.grid_of((3, 1, 32, 32))
    assert objective.state_dict()["encoder.model.cls_token"].shape == (1, 1, 64)


def test_wrong_data_is_named() -> None:
    objective, batch = make(**EMA)
    with pytest.raises(
        ConfigError, match=r"the data has no actions, but the model has objective.predictor.action_dim 3"
    ):
        objective(Batch(batch.clip), 0.0)
    with pytest.raises(ConfigError, match=r"the data has no states, but the model has objective.predictor.state_dim 4"):
        objective(Batch(batch.clip, actions=batch.actions), 0.0)
    with pytest.raises(ConfigError, match=r"actions of 2 numbers, the model \(objective.predictor.action_dim\) of 3"):
        objective(Batch(batch.clip, actions=torch.zeros(3, 5, 2), states=batch.states), 0.0)
    with pytest.raises(ConfigError, match="clips of 6 frames need 5 actions, but have 6"):
        objective(Batch(batch.clip, actions=torch.zeros(3, 6, 3), states=batch.states), 0.0)
    with pytest.raises(ConfigError, match=r"states of 5 numbers, the model \(objective.predictor.state_dim\) of 4"):
        objective.set_statistics(Statistics(*[torch.ones(3)] * 4, torch.ones(5), torch.ones(5)))


@pytest.mark.parametrize(("settings", "message"), [
    ({}, "nothing keeps an encoder that is trained along from giving all frames the same latents"),
    ({"encoder_from": "x", "momentum": [0.9, 1.0]}, "momentum has no meaning beside encoder_from"),
    ({"encoder_from": "x", "inverse_weight": 1.0}, "inverse_weight has no meaning beside encoder_from"),
    ({"encoder_from": "x", "similarity_weight": 1.0}, "similarity_weight has no meaning beside encoder_from"),
    ({"momentum": [0.9, 1.0], "within_weight": 1.0}, "within_weight weighs the regularizer's penalty"),
    ({"encoder_from": "x", "latent": {"dim": 8}}, "latent.dim is a learned projection"),
    ({"momentum": [0.9, 1.1]}, "momentum must lie in"),
    ({"momentum": [0.9, 1.0], "teacher_weight": 0}, "teacher_weight above 0, not 0.0"),
    ({"momentum": [0.9, 1.0], "rollout_steps": -1}, "rollout_steps must not be negative"),
    ({"momentum": [0.9, 1.0], "rollout_context": 0}, "rollout_context must be at least 1 frame, not 0"),
    ({"momentum": [0.9, 1.0], "window": 0}, "window must be at least 1 step"),
    ({"momentum": [0.9, 1.0], "loss": "l2"}, "objective.loss' must be one of 'l1', 'mse', 'smooth_l1'"),
    ({"momentum": [0.9, 1.0], "predictor": {"use_extrinsics": True, "extrinsics_dim": 6}}, "no camera extrinsics"),
])  # fmt: skip
def test_wrong_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_dict(OBJECTIVES["world_model"][0], settings, "objective")


def test_configs_survive_a_round_trip() -> None:
    for config in (
        WorldModelConfig(**FROZEN),
        WorldModelConfig(regularizer=SigRegConfig(), latent=LatentConfig(pool=(3, 3))),
    ):
        assert from_dict(WorldModelConfig, to_dict(config)) == config
    with pytest.raises(ConfigError, match="not settled"):
        build_objective(WorldModelConfig(encoder_from="x", predictor=PREDICTOR), ENCODER, CLIP, 0)


# ---- horizons and the monitor ----------------------------------------------------------------------------------------


@torch.no_grad()
def test_horizon_errors_equal_single_rollouts() -> None:
    objective, batch = make(**EMA)
    world, error = objective.world_model, objective.error
    latents = world.encode(batch.clip)
    assert batch.actions is not None
    assert batch.states is not None
    values = horizon_errors(world, latents, batch.actions, batch.states, error, context=2)
    assert {name for name in values if "_h" in name} == {
        f"{n}_h{h}" for n in ("error", "error_copy", "error_mean", "skill") for h in (1, 2, 4)
    }
    for h in (1, 2, 4):
        alone = world.rollout(latents[:, :2], batch.actions[:, : 1 + h], batch.states[:, :2])[:, -1]
        assert values[f"error_h{h}"].item() == pytest.approx(error(alone, latents[:, 1 + h]).item(), rel=1e-4)
        copy, mean = (
            error(latents[:, 1], latents[:, 1 + h]),
            error(latents.mean(dim=(0, 1)).expand(3, -1, -1), latents[:, 1 + h]),
        )
        assert values[f"error_copy_h{h}"].item() == pytest.approx(copy.item(), rel=1e-5)
        assert values[f"error_mean_h{h}"].item() == pytest.approx(mean.item(), rel=1e-5)
        assert values[f"skill_h{h}"].item() == pytest.approx(
            1 - values[f"error_h{h}"].item() / min(copy, mean).item(), rel=1e-4
        )
    best = sum(min(values[f"error_copy_h{h}"], values[f"error_mean_h{h}"]) for h in (1, 2, 4))
    assert values["skill"].item() == pytest.approx(1 - 3 * values["error"].item() / float(best), rel=1e-4)
    with pytest.raises(ValueError, match=r"clips of 2 frames reach no horizon of \[1, 2, 4, 8\] after 2"):
        horizon_errors(world, latents[:, :2], batch.actions[:, :1], batch.states[:, :2], error, context=2)


@pytest.mark.parametrize("kind", list(KINDS))
def test_the_monitor_measures_and_draws_frames(kind: str) -> None:
    objective, batch = make(**KINDS[kind])
    monitor = CollapseMonitor(MonitorConfig())
    values = {name: float(value) for name, value in monitor.measure(objective, batch).items()}
    assert {"pooled_std", "rankme", "error_h1", "error_copy_h4", "skill"} <= set(values)
    assert ("ema_distance" in values) == (kind == "ema")
    assert set(pictures(objective, batch, CLIP)) == {"pca"}
    poor = {**values, "skill": -1.0}
    (warning,) = monitor.warnings([poor, poor, poor])
    assert "no better than a constant (error " in warning
    assert "copy" in warning


# ---- in the loop -----------------------------------------------------------------------------------------------------


def known(settings: dict[str, Any]) -> dict[str, Any]:
    settings["objective"]["predictor"] |= {"action_dim": 2, "state_dim": 3}
    return settings


def test_a_compiled_step_gives_the_same_losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **options: plain(self, backend="eager", **options))
    torch._dynamo.reset()
    losses = []
    for compiled in (False, True):
        session = build(from_dict(TrainConfig, known(world_settings(tmp_path))), Run(torch.device("cpu"), "fp32"))
        session.objective.set_statistics(session.loader.statistics())
        before = graphs_made()
        if compiled:
            assert compile_parts(session.objective, [])
        batches = session.loader.iterate(0)
        losses.append([train_step(session, next(batches), step)["loss"].item() for step in range(2)])
        batches.close()
        assert (graphs_made() > before) == compiled
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_bf16_is_near_fp32() -> None:
    objective, batch = make(**EMA)
    exact = objective(batch, 0.0).total.item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = objective(batch, 0.0)
    assert loss.total.dtype == torch.float32
    assert loss.total.item() == pytest.approx(exact, rel=0.02)


def test_a_residual_model_begins_as_the_copy_of_the_last_frame() -> None:
    objective, batch = make(**FROZEN, residual=True, loss="mse")
    latents = objective.world_model.encode(batch.clip)
    loss = objective(batch, 0.0)
    torch.testing.assert_close(loss.terms["prediction"], F.mse_loss(latents[:, :-1], latents[:, 1:]))
    loss.total.backward()
    assert float(objective.predictor.predictor_proj.weight.grad.abs().max()) > 0  # type: ignore[union-attr]
