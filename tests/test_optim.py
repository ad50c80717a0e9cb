"""Parameter groups, schedules applied to the optimizer, gradient clipping."""

from __future__ import annotations

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
