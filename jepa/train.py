"""fit(): the only training loop. It moves one objective over batches of clips, logs, and saves what it needs to go on.

A non-finite loss never reaches a checkpoint: losses and gradient norms stay on the device as they are computed, are
read together at every log step and before every save, and the first bad one stops the run. The weights in memory
may be spoilt by then; the last checkpoint on the disk is not.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from jepa.checkpoint import latest_checkpoint, open_run_dir
from jepa.config import ConfigError
from jepa.data.loader import DataConfig
from jepa.data.transforms import AugmentConfig
from jepa.distributed import Parallel, Run
from jepa.logging import Progress, RunLog, StepWindow, duration, logger
from jepa.masks import MaskConfig
from jepa.models.encoder import EncoderConfig
from jepa.models.recompute import Recompute
from jepa.monitor import MonitorConfig
from jepa.objectives import ObjectiveConfig
from jepa.observer import Observer, OnlineConfig, OpenObserver
from jepa.optim import OptimConfig
from jepa.peers import naming_lost_peers
from jepa.precision import Precision, products
from jepa.profiling import Profiler
from jepa.session import Session, build, restore, save, train_step
from jepa.settling import settled
from jepa.stopping import Stopped, StopSignal
from jepa.throughput import Meter, speed_text
from jepa.types import ClipConfig
from jepa.watch import Watch

# Keys that may change when a run is continued: they do not touch what is computed, except for more steps.
FREE_KEYS = (
    "run_dir", "monitor", "online", "encoder.activation_checkpointing", "objective.predictor.activation_checkpointing",
    "train.steps", "train.device", "train.save_every", "train.keep_last",
    "train.keep_every", "train.log_every", "train.progress", "train.tensorboard", "train.parallel",
    "train.activation_checkpointing", "train.time_limit_min", "train.timeout_s", "data.workers", "data.prefetch",
    "data.cache_mb", "data.max_failed", "data.shard_cache_gb",
)  # fmt: skip


class TrainError(ValueError):
    """Training cannot go on; the message says at which step, why, and what is left on the disk."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopConfig:
    """How long and how to train. ``batch_size`` is global: clips per update over all processes and ``accumulate``
    micro-batches. ``save_every``, ``keep_every`` and ``log_every`` are in steps. ``compile`` uses torch.compile.

    ``precision``: what is computed in; "auto" is bf16 on CUDA devices that support it, else fp32; "tf32" is fp32 with
    TensorFloat-32 matrix products; weights, optimizer state and EMA are always fp32. ``float8``: linear layers through
    torchao where the device has float8. ``parallel``: "ddp" (a copy of the model per process) or "fsdp" (weights,
    gradients, optimizer state and EMA target in shards). ``activation_checkpointing``: what the backward pass computes
    again instead of keeping: "none", "selective" (keeps matrix products and attention) or "full" (keeps the input of
    every block). ``time_limit_min``: save and stop after so many minutes. ``timeout_s``: how long processes wait for
    each other before that is an error.
    """

    steps: int
    batch_size: int
    accumulate: int = 1
    precision: Precision = "auto"
    device: str = "auto"
    compile: bool = False
    float8: bool = False
    parallel: Parallel = "ddp"
    activation_checkpointing: Recompute = "none"
    time_limit_min: float | None = None
    timeout_s: float = 600.0
    save_every: int = 1000
    keep_last: int = 2
    keep_every: int | None = None
    log_every: int = 20
    progress: Progress = "auto"
    tensorboard: bool = True

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "save_every", "keep_last", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("time_limit_min", "timeout_s"):
            if (value := getattr(self, name)) is not None and value <= 0:
                raise ValueError(f"{name} must be above 0, not {value}")
        if self.batch_size % self.accumulate:
            raise ValueError(f"batch_size {self.batch_size} must be a multiple of accumulate {self.accumulate}")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """Everything that defines a run. ``init_from``: a run directory or checkpoint whose weights (not its optimizer)
    a new run begins with; continuing an interrupted run needs nothing but the same ``run_dir``. ``online``: frozen
    probes during training."""

    run_dir: str
    seed: int = 0
    clip: ClipConfig
    data: DataConfig
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    masks: list[MaskConfig] = field(default_factory=list)
    objective: ObjectiveConfig
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: LoopConfig
    monitor: MonitorConfig = field(default_factory=MonitorConfig)
    online: OnlineConfig | None = None
    init_from: str | None = None

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, but is {self.seed}")


def fit(config: TrainConfig, probing: OpenObserver | None = None, *, profile: bool = False) -> Path:
    """Train, or continue the run in ``config.run_dir``, to ``config.train.steps``; returns the last checkpoint.
    ``probing`` opens what does the online probing that ``config.online`` asks for: ``evals.online.OnlineProbes``.
    ``profile``: also write a trace of a few steps to ``run_dir/profile`` (``jepa.profiling``).

    SIGUSR1, SIGUSR2, SIGTERM and Ctrl-C on any process, and ``train.time_limit_min`` on the clock of the first, make
    all of them save after the same step and raise ``Stopped`` (a ``SystemExit``, status 128 + signal number).
    Raises ``ConfigError`` when the directory belongs to another config, ``TrainError`` for a non-finite loss,
    ``CheckpointError`` when saving fails, ``LostPeersError`` when another process is gone; each leaves the last save.
    """
    loop, began = config.train, time.perf_counter()
    with contextlib.ExitStack() as stack:
        # ---- where: device, processes, run directory -----------------------------------------------------------------
        stop = stack.enter_context(StopSignal())
        run = stack.enter_context(Run.start(loop.device, loop.precision, loop.timeout_s))
        stop.end_after(loop.time_limit_min if run.is_main else None)
        stack.enter_context(naming_lost_peers(run, config.run_dir))
        config = run.on_main(functools.partial(claim, config))
        saved = run.on_main(lambda: latest_checkpoint(config.run_dir))
        stack.enter_context(products(run.precision))

        # ---- what: model, data, optimizer, and where they stood ------------------------------------------------------
        session = build(config, run)
        step = restore(session, saved)
        log = stack.enter_context(contextlib.closing(open_log(config, run, step)))
        describe(session, step)
        observers, window = open_observers(session, log, probing), StepWindow()
        if profile:
            observers.append(stack.enter_context(contextlib.closing(Profiler(session))))
        stopping = any(run.gather(stop.reason))  # a signal may have come while all this was made
        if step == 0 and not stopping:
            look(observers, 0, 0.0)  # what random weights look like: later measurements are compared with it

        # ---- the loop ------------------------------------------------------------------------------------------------
        batches = stack.enter_context(contextlib.closing(session.loader.iterate(step)))
        meter = Meter(session)
        while step < loop.steps and not stopping:
            with meter.timer.waiting():
                batch = next(batches)
            window.add(step, values := train_step(session, batch, step))
            meter.stepped(batch, values["loss"])
            step += 1
            log.step(step)
            stopping = run.any_last_step(stop.reason is not None)
            last = stopping or step == loop.steps
            if last or step % loop.log_every == 0 or step % loop.save_every == 0:
                report(session, log, window, meter, step, observers)
            with meter.timer.paused() as trained_s:
                if not stopping:
                    look(observers, step, trained_s)
                if last or step % loop.save_every == 0:
                    saved = save(session, step)

        # ---- the end -------------------------------------------------------------------------------------------------
        saved = saved or save(session, step)
        if stopping and step < loop.steps:
            raise stopped_by(run.gather(stop.reason), step, saved, loop.steps)
        say_done(session, step, time.perf_counter() - began, saved)
    return saved


def say_done(session: Session, step: int, seconds: float, saved: Path) -> None:
    """The last line of a finished run."""
    folder = session.config.run_dir
    logger.info("done: step %d after %s; checkpoint %s; curves: tensorboard --logdir %s; next: %s", step,
                duration(seconds), saved, folder, session.objective.follow_up.format(run=folder))  # fmt: skip


def claim(config: TrainConfig) -> TrainConfig:
    """The settled config, to which ``run_dir`` belongs from now on."""
    config = settled(config)
    open_run_dir(config.run_dir, config, FREE_KEYS)
    return config


def stopped_by(reasons: Sequence[object], step: int, saved: Path, steps: int) -> Stopped:
    """The end that was asked for: by the first process, in rank order, that has a reason."""
    reason = next(str(reason) for reason in reasons if reason is not None)
    logger.info("stopped by %s at step %d of %d, saved %s; run the same command to go on", reason, step, steps, saved)
    return Stopped(reason, step, saved)


def open_observers(session: Session, log: RunLog, probing: OpenObserver | None) -> list[Observer]:
    """The monitor, and the online probes where the config asks for them."""
    if session.config.online is None:
        return [Watch(session, log)]
    if probing is None:
        raise ConfigError("config key 'online' needs fit(config, evals.online.OnlineProbes), as `jepa train` calls it")
    return [Watch(session, log), probing(session, log)]


def look(observers: Sequence[Observer], step: int, trained_s: float) -> None:
    """Let those look that are due."""
    for observer in observers:
        if observer.due(step, trained_s):
            observer.look(step)


def open_log(config: TrainConfig, run: Run, step: int) -> RunLog:
    """The log of the run directory, going on from ``step``."""
    loop = config.train
    return RunLog(config.run_dir, total_steps=loop.steps, start_step=step, is_main=run.is_main, progress=loop.progress,
                  tensorboard=loop.tensorboard)  # fmt: skip


def report(
    session: Session, log: RunLog, window: StepWindow, meter: Meter, step: int, observers: Sequence[Observer]
) -> None:
    """Read the window's metrics (the only sync), stop if one of them is not finite, log their means and the speed."""
    first, rows = window.read(session.run.reduce_mean)
    check_finite(session, window.names, first, rows)
    groups, figures = session.optimizer.param_groups, meter.figures()
    values = dict(zip(window.names, rows.mean(dim=0).tolist(), strict=True))
    values |= {"lr": groups[-1]["lr"], "weight_decay": groups[0]["weight_decay"], **figures}
    left = duration((session.config.train.steps - step) * figures["time/step_s"])
    show = [f"loss {values['loss']:.4f}", speed_text(figures), f"{left} left"]
    if figures["skipped"]:
        show.append(f"{figures['skipped']:.0f} clips skipped")
    log.metrics(step, values, show="  ".join([*show, *(o.summary for o in observers if o.summary)]))


def check_finite(session: Session, names: list[str], first: int, rows: Tensor) -> None:
    """Raise ``TrainError`` for the first step with a NaN or an infinity. ``rows`` ``[steps, names]`` on the CPU."""
    finite = rows.isfinite()
    if session.scaler.is_enabled():  # fp16 overflows now and then by design: the scaler skips such a step
        finite[:, names.index("grad_norm")] = True
    if bool(finite.all()):
        return
    row = int((~finite.all(dim=1)).nonzero()[0])
    terms = ", ".join(f"{name} {value:.4g}" for name, value in zip(names, rows[row].tolist(), strict=True))
    saved = latest_checkpoint(session.config.run_dir)
    raise TrainError(
        f"the loss is not finite at step {first + row + 1}: {terms}; last good checkpoint: {saved or 'none'}; "
        "a lower optim.lr, a longer warm-up or precision fp32 may help"
    )


def describe(session: Session, step: int) -> None:
    """Say in the log what is about to run, where, and on what."""
    config, run, encoder = session.config, session.run, session.objective.encoder
    trained = sum(p.numel() for p in session.objective.parameters() if p.requires_grad) / 1e6
    own = sum(p.numel() for p in encoder.parameters()) / 1e6
    logger.info("%s in %s, %d process%s", run.device, run.precision, run.world_size, "es" if run.world_size > 1 else "")
    logger.info("encoder %.2f M parameters (%.2f M trained in all), %d x %d x %d tokens", own, trained, *encoder.grid)
    logger.info("%s %s: step %d to %d, batches of %d clips", "continue" if step else "start", config.run_dir, step,
                config.train.steps, config.train.batch_size)  # fmt: skip
