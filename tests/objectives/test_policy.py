"""Policies: trained in imagination and distilled from a planner, on a world whose answer is known; runs, bounds."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from made_worlds import world_settings, write_worlds
from torch import Tensor, nn

import jepa
from jepa.config import ConfigError, from_dict, load_yaml
from jepa.logging import read_metrics
from jepa.models.action_predictor import ActionPredictorConfig
from jepa.models.encoder import EncoderConfig
from jepa.models.flops import linear_flops
from jepa.models.latent_head import LatentConfig
from jepa.models.policy import PolicyNet, PolicyNetConfig, dream
from jepa.objectives import PolicyBase, PolicyConfig, PolicyObjective, VarianceCovarianceConfig, WorldModelConfig
from jepa.objectives.policy import Pairs
from jepa.objectives.world_flops import frame_flops
from jepa.planning import PlannerConfig
from jepa.tensorfiles import CheckpointError, read_torch_file
from jepa.train import TrainConfig, fit
from jepa.types import Batch, ClipConfig, Statistics
from jepa.world_model import is_policy, load_policy, load_world_model

CLIP = ClipConfig(num_frames=6, fps=5.0, crop_size=32)
ENCODER = EncoderConfig(embed_dim=24, depth=1, num_heads=2, patch_size=16, tubelet_size=1)
GAIN = torch.tensor([[1.0, 0.5], [-0.5, 1.0]])  # how actions move the latents of the linear world
LOW, HIGH = torch.tensor([-0.2, -0.4]), torch.tensor([0.2, 0.4])
PLANNER = PlannerConfig(kind="cem", samples=64, iterations=4, horizon=4, elites=8)


class Place(NamedTuple):
    latents: Tensor

    def repeat(self, samples: int) -> Place:
        return Place(self.latents.expand(samples, -1, -1))


class LinearWorld(nn.Module):
    """One token, two wide: latents move by ``GAIN`` times the action."""

    action_dim, state_dim = 2, 0

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(GAIN.clone(), requires_grad=False)

    def begin(self, latents: Tensor, actions: Tensor, states: Tensor | None = None) -> Place:
        assert actions.shape[1:] == (0, 2)
        return Place(latents[:, -1])

    def step(self, memory: Place, action: Tensor) -> tuple[Tensor, Place]:
        latents = memory.latents + (action @ self.gain.T)[:, None]
        return latents, Place(latents)


def world_config(**changes: Any) -> WorldModelConfig:
    values: dict[str, Any] = {"action_dim": 2, "state_dim": 0, "embed_dim": 24, "depth": 1, "num_heads": 2}
    return WorldModelConfig(
        regularizer=VarianceCovarianceConfig(), latent=LatentConfig(pool="mean", dim=2),
        predictor=ActionPredictorConfig(**{**values, **changes}),
    )  # fmt: skip


def objective(**changes: Any) -> PolicyObjective:
    """With a real world model of random weights, one token, two wide."""
    torch.manual_seed(0)
    base = PolicyBase(objective=world_config(**changes.pop("world", {})), clip=CLIP)
    values: dict[str, Any] = {
        "model": "runs/w", "base": base, "action_low": tuple(LOW.tolist()), "action_high": tuple(HIGH.tolist()),
        "net": PolicyNetConfig(token_dim=16, hidden_dim=32), "planner": PLANNER,
    }  # fmt: skip
    made = PolicyObjective(PolicyConfig(**{**values, **changes}), ENCODER, CLIP, 0)
    made.set_bounds()
    return made


def linear(**changes: Any) -> PolicyObjective:
    """The same acting in ``LinearWorld``."""
    made = objective(**changes)
    object.__setattr__(made, "world_model", LinearWorld())
    return made


def some_pairs(count: int = 64, seed: int = 0) -> Pairs:
    """Starts in a square, goals up to 0.6 away from them."""
    generator = torch.Generator().manual_seed(seed)
    starts = torch.rand(count, 1, 2, generator=generator)
    return Pairs(starts, starts + 1.2 * torch.rand(count, 1, 2, generator=generator) - 0.6, None)


def far_after(made: PolicyObjective, steps: int = 8) -> float:
    """Mean distance to unseen goals after so many steps."""
    pairs = some_pairs(256, seed=9)
    with torch.no_grad():
        rolled = dream(made.world_model, made.net, pairs.starts, pairs.goals, None, steps)
    return float((rolled.latents[:, -1] - pairs.goals).norm(dim=-1).mean())


def learn(made: PolicyObjective, steps: int) -> None:
    optimizer = torch.optim.Adam([p for p in made.parameters() if p.requires_grad], lr=5e-3)
    for step in range(steps):
        pairs = some_pairs(seed=step)
        loss = made.distilled(pairs) if made.config.mode == "distil" else made.imagined(pairs)
        loss.total.backward()
        optimizer.step()
        optimizer.zero_grad()


def batch(clips: int = 3, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return Batch(clip=torch.randn(clips, 3, 6, 32, 32, generator=generator), actions=torch.zeros(clips, 5, 2))


# ---- learning --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("energy", ["l2", "l1"])
def test_imagination_reaches_goals_and_a_fresh_policy_does_not(energy: str) -> None:
    made = linear(energy=energy, horizon=5)
    far = far_after(made)
    assert far > 0.4  # as the starts: 0.46 on average
    learn(made, 150)
    assert far_after(made) < 0.05
    assert torch.equal(made.world_model.gain, GAIN)  # type: ignore[arg-type]


def test_distilling_gives_the_planners_actions() -> None:
    made = linear(mode="distil", plans_per_step=6, plan_steps=3)
    learn(made, 150)
    rows = some_pairs(24, seed=9)
    seen, wanted, _ = made.plans(rows)
    with torch.no_grad():
        found = made.net(rows.starts, rows.goals)
    likeness = torch.cosine_similarity(made.in_half_widths(found), made.in_half_widths(wanted[:, 0]), dim=-1)
    assert likeness.mean() > 0.9
    assert torch.equal(seen[:, 0], rows.starts)
    torch.testing.assert_close(seen[:, 1:, 0], rows.starts + (wanted[:, :2] @ GAIN.T).cumsum(dim=1))
    assert far_after(made) < 0.15


def test_plans_are_better_than_standing_still_and_their_energy_is_reported() -> None:
    made = linear(mode="distil", plan_steps=4)
    rows = some_pairs(4)
    torch.manual_seed(1)
    seen, wanted, energy = made.plans(rows)
    after = seen + (wanted @ GAIN.T)[:, :, None]
    own = (after - rows.goals[:, None]).square().mean(dim=(-2, -1))
    torch.testing.assert_close(energy, own.mean())
    assert energy < (rows.starts - rows.goals).square().mean() / 2
    assert ((wanted >= LOW) & (wanted <= HIGH)).all()
    torch.manual_seed(1)
    assert torch.equal(made.plans(rows)[1], wanted)  # all randomness is the step's


def test_the_loss_is_the_sum_of_energies() -> None:
    made, rows = linear(horizon=3, action_weight=0.5), some_pairs(5)
    loss = made.imagined(rows)
    now, total, squares = rows.starts, torch.zeros(()), torch.zeros(())
    energies = []
    for _ in range(3):
        action = made.net(now, rows.goals)
        now = now + (action @ GAIN.T)[:, None]
        energies.append((now - rows.goals).square().mean())
        squares = squares + (action / HIGH).square().mean() / 3
        total = total + energies[-1]
    torch.testing.assert_close(loss.total, total + 0.5 * squares)
    torch.testing.assert_close(loss.terms["energy"], total.detach() / 3)
    torch.testing.assert_close(loss.terms["energy_last"], energies[-1].detach())
    torch.testing.assert_close(loss.terms["energy_start"], (rows.starts - rows.goals).square().mean())


def test_noise_is_added_within_the_bounds() -> None:
    made, rows = linear(), some_pairs(4000)
    torch.manual_seed(0)
    with torch.no_grad():
        calm = dream(made.world_model, made.net, rows.starts, rows.goals, None, 1).actions
        noisy = dream(made.world_model, made.net, rows.starts, rows.goals, None, 1, noise=0.2).actions
        wild = dream(made.world_model, made.net, rows.starts, rows.goals, None, 1, noise=5.0).actions
    torch.testing.assert_close((noisy - calm).std(dim=(0, 1)), 0.2 * HIGH, atol=0.01, rtol=0.0)
    assert ((wild >= LOW) & (wild <= HIGH)).all()
    assert (wild == HIGH).any()


@pytest.mark.parametrize("mode", ["imagination", "distil"])
def test_gradients_reach_the_policy_alone(mode: str) -> None:
    made = objective(mode=mode, plans_per_step=2, plan_steps=2)
    before = {name: value.clone() for name, value in made.inherited_state().items()}
    made(batch(), 0.0).total.backward()
    for name, parameter in made.named_parameters():
        assert parameter.requires_grad == name.startswith("net."), name
        assert (parameter.grad is not None) == parameter.requires_grad, name
        assert parameter.grad is None or parameter.grad.any(), name
    assert all(torch.equal(value, before[name]) for name, value in made.inherited_state().items())
    assert made.training
    assert made.net.training
    assert not any(part.training for part in (made.encoder, made.predictor, made.world_model.encoder))


# ---- pairs -----------------------------------------------------------------------------------------------------------


def numbered(clips: int, frames: int = 6) -> Tensor:
    """Latents that say their clip and frame."""
    rows, steps = torch.meshgrid(torch.arange(clips), torch.arange(frames), indexing="ij")
    return torch.stack((rows, steps), dim=-1)[:, :, None].float()


def test_goals_are_later_frames_or_frames_of_other_clips() -> None:
    torch.manual_seed(0)
    near = objective(far_goals=0.0, goal_steps=3, pairs=500).pairs(numbered(4), None)
    start, goal = near.starts[:, 0], near.goals[:, 0]
    assert torch.equal(start[:, 0], goal[:, 0])
    ahead = goal[:, 1] - start[:, 1]
    assert set(ahead.tolist()) == {1, 2, 3}
    assert set(start[:, 1].tolist()) == {0, 1, 2, 3, 4}
    assert goal[:, 1].max() == 5
    whole = objective(far_goals=0.0, pairs=500).pairs(numbered(4), None)
    assert (whole.goals - whole.starts)[:, 0, 1].max() == 5
    far = objective(far_goals=1.0, pairs=500).pairs(numbered(4), None)
    assert not (far.starts[:, 0, 0] == far.goals[:, 0, 0]).any()
    assert {*far.goals[:, 0, 0].tolist()} == {0, 1, 2, 3}
    assert {*far.goals[:, 0, 1].tolist()} == {0, 1, 2, 3, 4, 5}
    some = objective(far_goals=0.25, pairs=500).pairs(numbered(4), None)
    share = (some.starts[:, 0, 0] != some.goals[:, 0, 0]).float().mean()
    assert abs(float(share) - 0.25) < 0.04


def test_states_are_those_of_the_starts() -> None:
    made = objective(world={"state_dim": 1}, pairs=50)
    latents = numbered(3)
    pairs = made.pairs(latents, latents[:, :, 0, 1:])
    assert pairs.states is not None
    assert torch.equal(pairs.states[:, 0], pairs.starts[:, 0, 1])
    with pytest.raises(ConfigError, match=r"model runs/w needs states \[3, 6, 1\], but the data has none"):
        made.pairs(latents, None)
    assert objective().pairs(latents, latents[:, :, 0]).states is None  # a model without states takes no notice


def test_one_clip_has_no_other() -> None:
    with pytest.raises(ConfigError, match=r"objective.far_goals 0.25 needs at least 2 clips on every process"):
        objective()(batch(1), 0.0)
    assert objective(far_goals=0.0)(batch(1), 0.0).total.isfinite()


def test_the_monitor_measures_the_same_pairs_at_every_call() -> None:
    made = linear(horizon=3)
    for clips in (4, 1):
        latents = 0.1 * numbered(clips)
        first, second = made.measure(latents, None), made.measure(latents, None)
        assert first == second
        pairs = made.pairs(latents, None, torch.Generator().manual_seed(0))
        torch.testing.assert_close(first["energy_start"], (pairs.starts - pairs.goals).square().mean())
        rolled = dream(made.world_model, made.net, pairs.starts, pairs.goals, None, 3).latents
        torch.testing.assert_close(first["energy_last"], (rolled[:, 2] - pairs.goals).square().mean().detach())
    assert (pairs.starts[:, 0, 0] == pairs.goals[:, 0, 0]).all()  # one clip


@pytest.mark.parametrize("mode", ["imagination", "distil"])
def test_under_autocast(mode: str) -> None:
    made = objective(mode=mode, plans_per_step=2, plan_steps=2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = made(batch(), 0.0).total
    loss.backward()
    assert loss.dtype == torch.float32
    assert all(p.grad is not None and p.grad.isfinite().all() for p in made.net.parameters())


# ---- the network -----------------------------------------------------------------------------------------------------


def test_actions_stay_within_any_bounds() -> None:
    torch.manual_seed(0)
    net = PolicyNet(PolicyNetConfig(token_dim=8, hidden_dim=16), tokens=3, latent_dim=4, action_dim=3)
    low, high = torch.tensor([-0.1, 0.3, 1.0]), torch.tensor([0.7, 0.3, 1e4])
    net.set_bounds(low, high)
    for scale in (1.0, 1e3, 1e6):
        actions = net(scale * torch.randn(2000, 3, 4), scale * torch.randn(2000, 3, 4))
        assert ((actions >= low) & (actions <= high)).all()
        assert (actions[:, 1] == 0.3).all()
    middle = net(torch.randn(200, 3, 4), torch.randn(200, 3, 4))
    torch.testing.assert_close(middle.mean(dim=0), (low + high) / 2, atol=300.0, rtol=0.2)
    assert net.flops(2) == 2 * 2 * (3 * 8 * 8 + 24 * 16 + 16 * 16 + 16 * 3)
    with pytest.raises(ValueError, match=r"alike, not \[2, 3, 4\] and \[2, 1, 4\]"):
        net(torch.zeros(2, 3, 4), torch.zeros(2, 1, 4))


@pytest.mark.parametrize(("low", "high", "message"), [
    ([-math.inf, 0], [1, 1], r"action_low is \[-inf, 0.0\]: a policy needs finite bounds on every action axis"),
    ([-1, 0], [1, math.nan], r"action_high is \[1.0, nan\]: a policy needs finite bounds"),
    ([-1, 2], [1, 1], r"action_low \[-1.0, 2.0\] must not be above action_high \[1.0, 1.0\]"),
    ([-1], [1], r"action_low has 1 values, but the model's actions have 2 axes"),
])  # fmt: skip
def test_bad_bounds(low: list[float], high: list[float], message: str) -> None:
    net = PolicyNet(PolicyNetConfig(), tokens=1, latent_dim=2, action_dim=2)
    with pytest.raises(ValueError, match=message):
        net.set_bounds(torch.tensor(low, dtype=torch.float32), torch.tensor(high, dtype=torch.float32))
    assert net.action_high.tolist() == [1, 1]


def test_infinite_bounds_of_the_data_are_named() -> None:
    made = objective(action_low=None, action_high=None)
    made.scaling.action_high.fill_(math.inf)
    message = r"model runs/w: action_high is \[inf, inf\]: a policy needs .*; set objective.action_low and objective"
    with pytest.raises(ConfigError, match=message):
        made.set_bounds()


# ---- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("changes", "message"), [
    ({"model": ""}, "model must name a run of the objective world_model or controller"),
    ({"horizon": 0}, "horizon must be at least 1, not 0"),
    ({"goal_steps": 0}, "goal_steps must be at least 1, not 0"),
    ({"plans_per_step": 0}, "plans_per_step must be at least 1, not 0"),
    ({"mode": "dream"}, "mode must be 'imagination' or 'distil' and energy one of l1, l2, cosine, not 'dream'"),
    ({"energy": "l3"}, "and energy one of l1, l2, cosine, not 'imagination' and 'l3'"),
    ({"far_goals": 1.5}, "far_goals must be a share between 0 and 1, not 1.5"),
    ({"action_noise": -1}, "action_noise must not be negative, but is -1"),
    ({"mode": "distil", "action_noise": 0.1}, "action_noise has no meaning with mode 'distil': leave it out"),
    ({"mode": "distil", "plan_steps": 9}, "plan_steps 9 is more than planner.horizon 8"),
])  # fmt: skip
def test_settings_that_make_no_sense(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PolicyConfig(**{"model": "runs/w", **changes})


def test_refused() -> None:
    with pytest.raises(ConfigError, match=r"objective.model is not settled: call jepa.settling"):
        PolicyObjective(PolicyConfig(model="runs/w"), ENCODER, CLIP, 0)
    with pytest.raises(ConfigError, match=r"goal_steps 6 needs clips of 7 frames, but clip.num_frames is 6"):
        objective(goal_steps=6)
    with pytest.raises(ValueError, match="depth must be at least 1, not 0"):
        PolicyNetConfig(depth=0)
    numbers = [torch.zeros(3)] * 4 + [torch.zeros(0)] * 2
    with pytest.raises(ConfigError, match=r"the data has actions of 3 numbers, but those of objective.model runs/w"):
        objective().set_statistics(Statistics(*numbers))


def test_work_counts_encoding_rollouts_and_policy() -> None:
    one, two = (objective(horizon=horizon, pairs=5).work(batch()) for horizon in (1, 2))
    made = objective(horizon=1, pairs=5)
    encoding = 18 * (frame_flops(made.encoder, 32, 32, trained=False) + linear_flops(made.head, 1))
    step = 15 * (2 * made._step_flops(0) + 3 * made.net.flops(1))
    assert one.flops == pytest.approx(encoding + step)
    assert two.flops - one.flops == pytest.approx(15 * (2 * made._step_flops(1) + 3 * made.net.flops(1)))
    assert one.tokens == 18 * 4
    uncropped = batch()
    uncropped.clip = torch.zeros(*uncropped.clip.shape[:3], 37, 41)  # as it leaves the loader
    assert made.work(uncropped).flops == one.flops
    distilled = objective(mode="distil", plans_per_step=2, plan_steps=3).work(batch())
    steps = sum(made._step_flops(step) for step in range(4))
    assert distilled.flops == pytest.approx(encoding + 2 * (4 * 64 * steps + 3 * made.net.flops(3)))


# ---- runs ------------------------------------------------------------------------------------------------------------


def policy_settings(folder: Path, **changes: Any) -> dict[str, Any]:
    settings = world_settings(folder)
    del settings["encoder"]
    own = {
        "kind": "policy", "model": str(folder / "run"), "horizon": 2, "pairs": 2,
        "net": {"token_dim": 8, "hidden_dim": 16},
    }  # fmt: skip
    settings["clip"] = {"num_frames": 7, "fps": 10}
    return {**settings, "run_dir": str(folder / "policy"), "objective": {**own, **changes}}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world model with states and an EMA, trained for four steps."""
    folder = tmp_path_factory.mktemp("policy")
    fit(from_dict(TrainConfig, world_settings(folder, momentum=[0.5, 1.0])))
    return folder


def test_a_run_is_self_contained(world: Path, tmp_path: Path) -> None:
    for name in ("run", "worlds"):
        shutil.copytree(world / name, tmp_path / name)
    model = load_world_model(tmp_path / "run")
    settings = policy_settings(tmp_path)
    settings["train"]["save_every"] = 2
    path = fit(from_dict(TrainConfig, settings))
    state = read_torch_file(path)
    tensors = state["objective"]
    for name, value in model.state_dict().items():
        assert torch.equal(tensors[name], value), name
    count = sum(name.startswith("net.") and "action" not in name for name in tensors)
    assert len(state["optimizer"]["state"]) == count == 8
    shutil.rmtree(tmp_path / "run")

    policy = load_policy(tmp_path / "policy")
    assert (policy.horizon, policy.energy) == (2, "l2")
    assert not any(parameter.requires_grad for parameter in policy.parameters())
    torch.testing.assert_close(policy.net.action_high, model.scaling.action_high)
    net = PolicyNet(PolicyNetConfig(token_dim=8, hidden_dim=16), 4, 8, 2)
    net.load_state_dict({n.removeprefix("net."): v for n, v in tensors.items() if n.startswith("net.")})
    frames = torch.randn(2, 3, 2, 32, 32)
    latents = model.encode(frames)
    assert torch.equal(policy(*latents.unbind(dim=1)), net(*latents.unbind(dim=1)))
    assert torch.equal(load_policy(path)(*latents.unbind(dim=1)), net(*latents.unbind(dim=1)))
    assert torch.equal(load_world_model(tmp_path / "policy").encode(frames), latents)
    assert jepa.load(tmp_path / "policy").clip.num_frames == 1
    assert load_yaml(tmp_path / "policy" / "config.yaml")["objective"]["base"]["clip"]["num_frames"] == 5
    record = read_metrics(tmp_path / "policy")[-1]
    assert record["monitor/energy"] > 0
    assert record["monitor/energy_start"] > 0

    path.unlink()
    again = read_torch_file(fit(from_dict(TrainConfig, settings)))["objective"]  # from step 2
    assert all(torch.equal(value, again[name]) for name, value in tensors.items())


def test_distilled_runs_and_controllers(world: Path, tmp_path: Path) -> None:
    small = {"embed_dim": 24, "depth": 1, "num_heads": 2}
    latent = {
        "kind": "latent_action", "predictor": small, "inverse": small, "regularizer": {"kind": "variance_covariance"},
        "bottleneck": {"kind": "none", "dim": 3}, "latent": {"pool": "mean"},
    }  # fmt: skip
    settings = world_settings(tmp_path)
    settings["objective"] = latent
    fit(from_dict(TrainConfig, settings))
    control = {**settings, "objective": {"kind": "controller", "model": str(tmp_path / "run"), "labels": 10}}
    fit(from_dict(TrainConfig, {**control, "run_dir": str(tmp_path / "control")}))
    planner = {"samples": 8, "elites": 2, "iterations": 2, "horizon": 2}
    own = {"model": str(tmp_path / "control"), "mode": "distil", "plans_per_step": 2, "plan_steps": 2}
    fit(from_dict(TrainConfig, policy_settings(tmp_path, **own, planner=planner)))
    policy, controlled = load_policy(tmp_path / "policy"), load_world_model(tmp_path / "control")
    latents, actions = controlled.encode(torch.randn(1, 3, 1, 32, 32)), torch.randn(1, 3, 2)
    assert torch.equal(policy.world.rollout(latents, actions), controlled.rollout(latents, actions))
    assert policy(latents[:, 0], latents[:, 0]).shape == (1, 2)
    assert is_policy(tmp_path / "policy")
    assert not is_policy(tmp_path / "control")
    assert not is_policy("vjepa2_ac")


def test_wrong_models(world: Path, tmp_path: Path) -> None:
    write_worlds(tmp_path / "worlds")
    with pytest.raises(ConfigError, match=r"objective\.model: .*none is neither a run directory nor a checkpoint"):
        fit(from_dict(TrainConfig, policy_settings(tmp_path, model=str(tmp_path / "none"))))
    own = {"model": str(world / "run")}
    fit(from_dict(TrainConfig, policy_settings(tmp_path, **own)))
    settings = policy_settings(tmp_path, model=str(tmp_path / "policy"))
    with pytest.raises(ConfigError, match="was trained with objective 'policy', not 'world_model' or 'controller'"):
        fit(from_dict(TrainConfig, {**settings, "run_dir": str(tmp_path / "other")}))
    with pytest.raises(CheckpointError, match="was trained with objective 'world_model', not 'policy'"):
        load_policy(world / "run")
    settings = policy_settings(tmp_path, **own)
    settings["clip"] = {"num_frames": 7, "fps": 5}
    with pytest.raises(ConfigError, match=r"clip.fps is 5.0, but objective.model .* was trained with 10.0"):
        fit(from_dict(TrainConfig, {**settings, "run_dir": str(tmp_path / "other")}))
