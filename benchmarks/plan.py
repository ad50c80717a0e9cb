"""Planning through a world model, side by side in one run: ours, and a plain loop over the same computation.

    python benchmarks/plan.py                                   # a light model on a CPU
    python benchmarks/plan.py --size vjepa2_ac --device cuda    # 305 M predictor, 256 latents of 1408 per frame

Ours: the context goes through the predictor once per plan, every imagined step extends cached keys and values, all
samples of a round are one batch (or ``--chunk`` of them), elites are chosen on the device. The plain loop does the same
search the usual way: for every step of every round the whole sequence of context and imagined frames goes through the
predictor again, ``--plain-chunk`` samples at a time, and costs and elites are gathered on the host sample by sample.
Both draw the same noise, so both must come to the same plan, which is checked. Weights are random: planning takes as
long with them as with trained ones.
"""

from __future__ import annotations

import argparse
from typing import NamedTuple

import torch
from common import alternate, describe_machine, parameters, synchronize
from torch import Tensor, nn

from jepa.models.action_predictor import ActionPredictor, ActionPredictorConfig
from jepa.models.base import ClipEncoder
from jepa.models.latent_head import LatentConfig, LatentHead
from jepa.models.rope import RopeConfig
from jepa.models.world_model import Scaling, WorldConfig, WorldModel
from jepa.planning import ActionSpace, PlannerConfig, action_space, franka_space, plan
from jepa.planning.energy import Energy, EnergyConfig
from jepa.planning.imagination import Imagination
from jepa.precision import mixed
from jepa.types import ClipConfig, TokenGrid


class Size(NamedTuple):
    """A predictor, the latents of a frame, and how it is planned with by default."""

    width: int
    depth: int
    heads: int
    cells: int  # rows and columns of latent tokens
    latent_dim: int
    action_dim: int
    state_dim: int
    samples: int
    iterations: int
    horizon: int
    elites: int
    context: int


SIZES = {
    "light": Size(96, 2, 4, 1, 128, 2, 0, 256, 5, 8, 32, 3),
    "tokens": Size(192, 4, 6, 4, 192, 2, 4, 256, 5, 8, 32, 3),
    "vjepa2_ac": Size(1024, 24, 16, 16, 1408, 7, 7, 800, 10, 2, 10, 1),
}


def build(size: Size, device: torch.device) -> WorldModel:
    """A world model with random weights; its encoder is never asked."""
    torch.manual_seed(0)
    grid = TokenGrid(1, size.cells, size.cells)
    config = ActionPredictorConfig(
        embed_dim=size.width, depth=size.depth, num_heads=size.heads, action_dim=size.action_dim,
        state_dim=size.state_dim,
    )  # fmt: skip
    predictor = ActionPredictor(config, size.latent_dim, grid, RopeConfig())
    encoder = ClipEncoder()
    head = LatentHead(LatentConfig(), size.latent_dim, grid)
    pose = "pose7" if size.action_dim == size.state_dim == 7 else "none"
    world = WorldConfig(state_update=pose)  # type: ignore[arg-type]
    clip = ClipConfig(num_frames=8, fps=4.0, crop_size=64)
    model = WorldModel(encoder, head, predictor, Scaling(size.action_dim, size.state_dim), world, clip)
    return model.to(device).eval().requires_grad_(False)


class Problem(NamedTuple):
    """What both sides plan: latents ``[T, n, D]``, actions ``[T-1, A]``, states ``[T, S]``, the goal ``[n, D]``."""

    model: WorldModel
    latents: Tensor
    actions: Tensor
    states: Tensor | None
    goal: Tensor
    space: ActionSpace
    config: PlannerConfig
    precision: str
    plain_chunk: int


def ours(problem: Problem) -> Tensor:
    """``jepa.planning``. Returns the planned actions on the host."""
    imagination = Imagination(problem.model, problem.latents, problem.actions, problem.states, problem.precision)
    cost = imagination.cost(Energy(EnergyConfig()), problem.goal, problem.space)
    generator = torch.Generator(problem.goal.device).manual_seed(0)
    return torch.from_numpy(plan(problem.config, cost, problem.space, generator).on_host())


@torch.inference_mode()
def plain(problem: Problem) -> Tensor:
    """CEM with the whole sequence recomputed at every step, and a copy to the host for every sample."""
    config, space, device = problem.config, problem.space, problem.goal.device
    generator = torch.Generator(device).manual_seed(0)
    mean = space.centre.expand(config.horizon, -1)
    std = (config.init_std * space.half_range).expand(config.horizon, -1)
    for _ in range(config.iterations):
        noise = torch.randn(config.samples, *mean.shape, generator=generator, device=device)
        tried = space.clip(mean + std * noise)
        costs: list[float] = []
        for part in tried.split(problem.plain_chunk):
            last = plain_rollout(problem, part)[:, -1]
            costs += [float((sample - problem.goal).abs().mean()) for sample in last]
        order = sorted(range(config.samples), key=costs.__getitem__)[: config.elites]
        elites = torch.stack([tried[number] for number in order])
        mean = torch.lerp(elites.mean(dim=0), mean, config.momentum)
        std = torch.lerp(elites.std(dim=0, correction=0), std, config.std_momentum)
        mean, std = space.clip(mean), torch.maximum(std, config.min_std * space.half_range)
    return mean.cpu()


def plain_rollout(problem: Problem, actions: Tensor) -> Tensor:
    """Imagined latents ``[N, H, n, D]``: the predictor sees all frames again for each new one."""
    from jepa.models.pose import next_states

    model, count, past = problem.model, len(actions), len(problem.actions)
    frames = problem.latents.expand(count, -1, -1, -1)
    done = problem.actions.expand(count, -1, -1)
    states = None if problem.states is None else problem.states.expand(count, -1, -1)
    for action in actions.unbind(dim=1):
        done = torch.cat((done, action[:, None]), dim=1)
        with mixed(problem.precision, frames.device):
            predicted = model.teacher_forced(frames, done, states)[:, -1:]
        frames = torch.cat((frames, predicted), dim=1)
        if states is not None:
            moved = next_states(model.config.state_update, states[:, -1:], action[:, None])
            states = torch.cat((states, moved), dim=1)
    return frames[:, past + 1 :]


def make_problem(options: argparse.Namespace, size: Size) -> Problem:
    device = torch.device(options.device)
    model = build(size, device)
    generator = torch.Generator().manual_seed(1)
    tokens = size.cells**2
    context = options.context or size.context

    def latents(*shape: int) -> Tensor:
        return nn.functional.layer_norm(torch.randn(*shape, generator=generator), shape[-1:]).to(device)

    space = franka_space() if size.action_dim == 7 else action_space([-1.0] * size.action_dim, [1.0] * size.action_dim)
    config = PlannerConfig(
        samples=options.samples or size.samples, iterations=options.iterations or size.iterations,
        horizon=options.horizon or size.horizon, elites=size.elites, chunk=options.chunk,
    )  # fmt: skip
    states = torch.zeros(context, size.state_dim, device=device) if size.state_dim else None
    past = space.sample(1, max(1, context - 1), generator)[0, : context - 1].to(device)
    return Problem(
        model, latents(context, tokens, size.latent_dim), past, states, latents(tokens, size.latent_dim),
        space.to(device), config, options.precision, options.plain_chunk or config.samples,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=tuple(SIZES), default="light")
    for name in ("samples", "iterations", "horizon", "context", "chunk", "plain-chunk"):
        parser.add_argument(f"--{name}", type=int, help="default: as the size says; chunks: all samples at once")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", default=None, help="fp32 or bf16 (default: bf16 on a GPU)")
    parser.add_argument("--repeats", type=int, default=5, help="timed plans of each side, alternating")
    parser.add_argument("--threads", type=int, help="CPU threads (default: PyTorch's choice)")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    options.precision = options.precision or ("bf16" if options.device.startswith("cuda") else "fp32")
    problem = make_problem(options, SIZES[options.size])
    config = problem.config
    print(f"{describe_machine(options.device)}; {options.precision}")
    print(
        f"{options.size}: predictor {parameters(problem.model.predictor) / 1e6:.1f} M, {len(problem.goal)} latents per "
        f"frame, context {len(problem.latents)}, {config.samples} samples x {config.iterations} rounds x horizon "
        f"{config.horizon}"
    )
    first, second = ours(problem), plain(problem)
    synchronize(options.device)
    print(f"largest difference of the planned actions: {float((first - second).abs().max()):.2g}")
    medians = alternate(
        {"ours": lambda: ours(problem), "plain loop": lambda: plain(problem)}, options.repeats, options.device,
        options.clock,
    )  # fmt: skip
    for name, seconds in medians.items():
        print(f"  {name:<12}{1000 * seconds:>12.1f} ms per planned action")
    print(f"  ours is {medians['plain loop'] / medians['ours']:.1f} times as fast")


if __name__ == "__main__":
    main()
