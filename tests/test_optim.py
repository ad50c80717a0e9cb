"""Parameter groups, schedules applied to the optimizer, gradient clipping."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from jepa.optim import OptimConfig, apply_schedules, build_optimizer, clip_gradients, parameter_groups
from jepa.schedules import ScheduleConfig


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.norm = nn.LayerNorm(2)
        self.mask_tokens = nn.ParameterList([nn.Parameter(torch.zeros(1, 1, 2))])
        self.frozen = nn.Linear(2, 2).requires_grad_(False)


def test_vectors_and_mask_tokens_do_not_decay_and_frozen_weights_are_left_out() -> None:
    model = Small()
    decayed, plain = parameter_groups(model)
    assert [id(p) for p in decayed] == [id(model.linear.weight)]
    expected = {id(p) for p in (model.linear.bias, model.norm.weight, model.norm.bias, model.mask_tokens[0])}
    assert {id(p) for p in plain} == expected


def test_schedules_reach_both_groups() -> None:
    config = OptimConfig(lr=ScheduleConfig(peak=1.0, warmup_steps=2), weight_decay=0.04, final_weight_decay=0.4)
    optimizer = build_optimizer(Small(), config)
    assert apply_schedules(optimizer, config, 0, 11) == {"lr": 0.0, "weight_decay": 0.04}
    values = apply_schedules(optimizer, config, 5, 11)
    assert values["weight_decay"] == pytest.approx(0.22)
    assert [group["lr"] for group in optimizer.param_groups] == [values["lr"]] * 2
    assert [group["weight_decay"] for group in optimizer.param_groups] == [values["weight_decay"], 0.0]
    assert apply_schedules(optimizer, config, 10, 11)["weight_decay"] == pytest.approx(0.4)
    constant = OptimConfig(weight_decay=0.1)
    assert apply_schedules(optimizer, constant, 9, 11)["weight_decay"] == pytest.approx(0.1)


def test_a_step_is_that_of_adamw_written_out() -> None:
    torch.manual_seed(0)
    model = Small()
    config = OptimConfig(lr=ScheduleConfig(peak=0.1), weight_decay=0.5)
    optimizer = build_optimizer(model, config)
    weight, bias = model.linear.weight.detach().clone(), model.linear.bias.detach().clone()
    model.linear(torch.randn(4, 3)).square().sum().backward()
    optimizer.step()
    for old, parameter, decay in ((weight, model.linear.weight, 0.5), (bias, model.linear.bias, 0.0)):
        gradient = parameter.grad
        assert gradient is not None  # after one step the bias-corrected moments are g and g^2
        expected = old * (1 - 0.1 * decay) - 0.1 * gradient / (gradient.abs() + 1e-8)
        torch.testing.assert_close(parameter.detach(), expected)


def test_clipping_returns_the_norm_before_and_scales_to_the_limit() -> None:
    model = nn.Linear(2, 1, bias=False)
    model.weight.grad = torch.tensor([[3.0, 4.0]])
    assert clip_gradients(model, OptimConfig()).item() == pytest.approx(5.0)
    assert model.weight.grad.tolist() == [[3.0, 4.0]]
    assert clip_gradients(model, OptimConfig(clip_norm=1.0)).item() == pytest.approx(5.0)
    assert model.weight.grad.tolist()[0] == pytest.approx([0.6, 0.8], rel=1e-4)


def test_wrong_values_are_refused_by_name() -> None:
    for field, value in (("clip_norm", 0.0), ("eps", 0.0), ("betas", (0.9, 1.0)), ("weight_decay", -0.1)):
        with pytest.raises(ValueError, match=field):
            OptimConfig(**{field: value})  # type: ignore[arg-type]


MUON = OptimConfig(kind="muon", lr=ScheduleConfig(peak=0.1), matrix_lr=2.0, weight_decay=0.5)


class Mixed(nn.Module):
    """A matrix, a kernel, a vector and a mask token: two, one and two of them go to Muon, AdamW and AdamW."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.other = nn.Linear(4, 3), nn.Linear(3, 3, bias=False)
        self.kernel = nn.Parameter(torch.randn(3, 1, 2))
        self.mask_tokens = nn.ParameterList([nn.Parameter(torch.zeros(1, 1, 3))])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.other(self.linear(x)) + self.kernel.sum() + self.mask_tokens[0][0]).square().mean()


def descend(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(5, 4, generator=generator)).backward()
        optimizer.step()


def test_muon_moves_matrices_by_an_orthogonal_step_and_the_rest_as_adamw_does() -> None:
    model, same = Mixed(), Mixed()
    optimizer = build_optimizer(model, MUON)
    matrices, decayed, plain = ([id(p) for p in group["params"]] for group in optimizer.param_groups)
    assert matrices == [id(model.linear.weight), id(model.other.weight)]
    assert decayed == [id(model.kernel)]
    assert plain == [id(model.linear.bias), id(model.mask_tokens[0])]
    rate = apply_schedules(optimizer, MUON, 5, 10)["lr"]
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([2 * rate, rate, rate])
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.5, 0.5, 0.0]
    adamw = build_optimizer(same, replace(MUON, kind="adamw", matrix_lr=1.0))
    apply_schedules(adamw, MUON, 5, 10)
    old = model.linear.weight.detach().clone()
    descend(model, optimizer, 1)
    descend(same, adamw, 1)
    torch.testing.assert_close(model.kernel, same.kernel)
    torch.testing.assert_close(model.linear.bias, same.linear.bias)
    moved = old * (1 - 2 * rate * 0.5) - model.linear.weight.detach()
    moved = moved / (2 * rate * 0.2 * 2)  # 0.2 x square root of the longer side
    left, _, right = torch.linalg.svd(model.linear.weight.grad, full_matrices=False)
    assert torch.linalg.svdvals(moved).sub(1).abs().max() < 0.35  # Newton-Schulz leaves them between 0.7 and 1.2
    assert torch.nn.functional.cosine_similarity(moved.flatten(), (left @ right).flatten(), dim=0) > 0.9


def test_muon_goes_on_from_its_saved_state_as_if_it_had_never_stopped() -> None:
    whole, stopped = Mixed(), Mixed()
    one, two = build_optimizer(whole, MUON), build_optimizer(stopped, MUON)
    descend(whole, one, 3)
    descend(stopped, two, 3)
    again = Mixed()
    again.load_state_dict(stopped.state_dict())
    other = build_optimizer(again, MUON)
    other.load_state_dict(two.state_dict())
    assert len(other.state_dict()["state"]) == 5
    descend(whole, one, 2, seed=1)
    descend(again, other, 2, seed=1)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value, rtol=0, atol=0, msg=name)


def test_the_matrices_learning_rate_belongs_to_muon() -> None:
    with pytest.raises(ValueError, match="matrix_lr must be positive, and belongs to kind: muon"):
        OptimConfig(matrix_lr=2.0)
    with pytest.raises(ValueError, match="matrix_lr"):
        OptimConfig(kind="muon", matrix_lr=0.0)
