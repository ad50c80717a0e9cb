"""``encode_files``: features of more videos than memory holds, on disk, by one or several processes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import nn
from tqdm import tqdm

from jepa.config import to_dict
from jepa.data.video import VideoError
from jepa.distributed import Run
from jepa.features.features import Pool
from jepa.features.store import FeatureFileError, check_suffix, open_rows, write_rows
from jepa.feed import Task
from jepa.forward import Encoded, Forward, choose_batch_size
from jepa.inputs import Camera, Inputs, Video, list_inputs
from jepa.job import EncodeOptions, Job, encode_tasks
from jepa.logging import duration
from jepa.models.base import ClipEncoder
from jepa.parts import Parts, PartWriter
from jepa.types import Fit
from jepa.windows import Merge

log = logging.getLogger("jepa")
_LOG_SECONDS = 30.0


class EncodeResult(NamedTuple):
    """The file, its rows, clips encoded (now and before), files that failed and why, and the speed of this process:
    ``wait_share`` of the time its device had no data. ``is_main``: this process wrote the file."""

    path: Path
    rows: int
    clips: int
    failed: list[str]
    seconds: float
    clips_per_s: float
    wait_share: float
    is_main: bool


def encode_files(
    inputs: Inputs, out: str | Path, model: ClipEncoder | str | Path, *, pool: Pool = "mean",
    probe: nn.Module | None = None, layers: Sequence[int] | None = None, segments: int = 1,
    overlap: float | None = None, merge: Merge = "none", fps: float | None = None, num_frames: int | None = None,
    clip_fps: float | None = None, crop_size: int | None = None, fit: Fit | None = None,
    weights: Literal["target_encoder", "encoder"] = "target_encoder", device: str = "auto", precision: str = "auto",
    batch_size: int | Literal["auto"] = "auto", workers: int | Literal["auto"] = "auto", progress: bool = True,
    overwrite: bool = False,
) -> EncodeResult:  # fmt: skip
    """``encode``, to the file ``out`` (``.parquet``, ``.safetensors`` or ``.npz``), in constant memory.

    Inputs and options are those of ``encode``. Results grow in a folder ``out.parts`` and become ``out`` in one move at
    the end; after a kill the same call goes on where it stopped, also within a video, and gives the same file. Another
    job is refused while that folder is there, and so is a finished file of other features unless ``overwrite``. Files
    that cannot be decoded do not stop the others: they are logged, and listed in the result and in the file's metadata;
    what could be decoded of them is kept. Started by torchrun, the processes share the inputs and write one file; each
    returns the same figures but for its own speed. Videos may differ in size with ``fit="keep"`` as long as they are
    pooled.

    Raises ``ValueError`` for options and inputs that cannot be, ``VideoError`` when nothing can be decoded,
    ``FeatureFileError`` (both are ``ValueError``) naming ``out`` when the disk is full or another job holds it.
    """
    out = Path(out)
    check_suffix(out)
    options = EncodeOptions(
        layers=None if layers is None else tuple(layers), segments=segments, overlap=overlap, merge=merge, pool=pool,
        num_frames=num_frames, clip_fps=clip_fps, crop_size=crop_size, fit=fit,
    )  # fmt: skip
    with Run.start(device, precision) as run:
        job = Job.prepare(model, options, run, probe, weights)
        videos = list_inputs(inputs, job.clip, fps)
        if run.world_size > 1 and any(isinstance(video.origin, Camera) for video in videos):
            raise ValueError("an iterator of frames cannot be shared by several processes: start one")
        with contextlib.closing(Parts(out)) as parts:
            return _Work(job, videos, parts, batch_size, workers, progress, overwrite).run()


class _Work:
    """One call of ``encode_files``."""

    def __init__(
        self, job: Job, videos: list[Video], parts: Parts, batch_size: int | str, workers: int | str, progress: bool,
        overwrite: bool,
    ) -> None:  # fmt: skip
        self.job, self.videos, self.parts = job, videos, parts
        self.batch_size, self.workers, self.progress, self.overwrite = batch_size, workers, progress, overwrite
        self.is_main = job.run.is_main
        self.forward = job.forward(may_split=batch_size == "auto")

    def run(self) -> EncodeResult:
        started, run = time.monotonic(), self.job.run
        plan = run.on_main(self._plan)
        plan = run.on_main(lambda: self.parts.claim(plan))
        known = run.on_main(lambda: self._finished(_digest(plan)))
        if known is not None:
            return known._replace(is_main=self.is_main)
        if self.batch_size == "auto":  # a job that was begun goes on with the same batches, and so with the same bits
            self.batch_size = plan["batch_size"]
        session = run.on_main(lambda: f"{1 + max((int(p.name[:4]) for p in self.parts.files()), default=0):04d}")
        failure: ValueError | None = None
        try:
            self._share(session)
        except ValueError as error:
            failure = error
        self._wait_for_all(session, "" if failure is None else str(failure))
        if failure is not None:
            raise failure
        result = run.on_main(lambda: self._assemble(_digest(plan)))
        meter = self.forward.meter
        return result._replace(
            seconds=time.monotonic() - started, clips_per_s=meter.clips_per_s, wait_share=meter.wait_share,
            is_main=self.is_main,
        )  # fmt: skip

    def _plan(self) -> dict[str, Any]:
        """What must be the same for a job to go on."""
        job = self.job
        identities = [[video.name, _identity(video)] for video in self.videos]
        inputs = hashlib.sha256(json.dumps(identities).encode()).hexdigest()[:16]
        probe = None if job.probe is None else _weights_hash(job.probe)
        return {
            "model": {
                "kind": type(job.model).__name__, "config": str(getattr(job.model, "config", "")),
                "weights": _weights_hash(job.model), "probe": probe,
            },
            "settings": {**to_dict(job.options), "precision": job.run.precision}, "clip": to_dict(job.clip),
            "inputs": f"{len(self.videos)} inputs, fingerprint {inputs}",
            "batch_size": choose_batch_size(self.batch_size, job.model, job.clip, job.run.device),
        }  # fmt: skip

    def _finished(self, digest: str) -> EncodeResult | None:
        """The result, if just this was encoded before. Raises ``FeatureFileError`` if ``out`` is another file."""
        out = self.parts.out
        if not out.exists() or self.overwrite:
            return None
        with contextlib.suppress(FeatureFileError), open_rows(out) as rows:
            if rows.metadata.get("plan") == digest:
                self.parts.remove()
                log.info("%s holds these features already: nothing to do (delete it to encode again)", out)
                return EncodeResult(out, len(rows.sources), 0, rows.metadata["failed"], 0.0, 0.0, 0.0, True)
        if not self.parts.files():
            self.parts.remove()
        raise FeatureFileError(
            f"{out} exists and does not hold these features (another model, settings or inputs): delete it, choose "
            "another output, or ask for it to be overwritten (overwrite=True, --force)"
        )

    def _share(self, session: str) -> None:
        """Encode what is left of this process's videos, part by part."""
        run, done = self.job.run, self.parts.progress()
        left = [n for n in range(len(self.videos)) if n not in done.ended][run.rank :: run.world_size]
        if not left:
            return
        if done.ended or done.stopped:
            log.info("going on: %d of %d inputs are done", len(done.ended), len(self.videos))
        tasks = [Task(n, self.videos[n], done.stopped[n].windows if n in done.stopped else 0) for n in left]
        writer = PartWriter(self.parts, f"{session}-{run.rank:03d}", self.job, done)
        with _Bar(len(tasks), self.progress and self.is_main, self.forward) as bar:
            steps = encode_tasks(self.job, tasks, self.batch_size, self.workers, self.forward, writer.rows)
            for encoded, rows in steps:
                writer.add(encoded, rows)
                bar.step(encoded)
        writer.flush()

    def _wait_for_all(self, session: str, error: str) -> None:
        """Meet the other processes, who may need hours longer: longer than a process group waits.

        Raises ``FeatureFileError`` when one of them failed.
        """
        run = self.job.run
        if run.world_size == 1:
            return
        with contextlib.suppress(OSError):  # a full disk: the others hear of it when this process ends
            (self.parts.folder / f"{session}-{run.rank:03d}.done").write_text(error)
        if error:
            return
        waited = [self.parts.folder / f"{session}-{rank:03d}.done" for rank in range(run.world_size)]
        while not all(path.exists() for path in waited):
            time.sleep(0.2)
        failed = [path.read_text() for path in waited]
        if any(failed):
            raise FeatureFileError(f"another process failed: {next(filter(None, failed))}")
        run.barrier()

    def _assemble(self, digest: str) -> EncodeResult:
        """Parts to the final file, in the order of the inputs."""
        job, out, done = self.job, self.parts.out, self.parts.progress()
        for video in sorted(done.ended):
            job.note(done.ended[video], self.videos[video].name)
        table = self.parts.table()
        if not len(table.video):
            self.parts.remove()
            raise VideoError(f"no input can be decoded; the first: {job.failed[0]}")
        sizes = list(zip(*table.grids))
        grid = [axis[0] if len(set(axis)) == 1 else 0 for axis in sizes]
        header = {**job.metadata(), "shape": list(table.shape), "grid": grid, "plan": digest}
        header["widths"] = table.widths if job.options.layers else []
        names = [self.videos[video].name for video in table.video]
        write_rows(out, names, table.start_s, table.end_s, table.blocks(), header)
        self.parts.remove()
        return EncodeResult(out, len(names), done.clips, job.failed, 0.0, 0.0, 0.0, True)


class _Bar:
    """Progress in videos, with clips per second and the time left: a bar on a terminal, else a line now and then."""

    def __init__(self, total: int, shown: bool, forward: Forward) -> None:
        self.total, self.shown, self.meter = total, shown, forward.meter
        self.done, self.within = 0, 0.0
        self.started = self.told = time.monotonic()
        look = "{desc}: {percentage:3.0f}%|{bar}| {n:.1f}/{total} videos [{elapsed}<{remaining}{postfix}]"
        terminal = shown and sys.stderr.isatty()
        self.bar = tqdm(total=total, desc="encode", bar_format=look, disable=not terminal, dynamic_ncols=True)

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()

    def step(self, encoded: Encoded) -> None:
        """After every batch."""
        self.done += len(encoded.work.ends)
        ended = {end.video for end in encoded.work.ends}
        under_way = [origin.share for origin in encoded.work.origins if origin.video not in ended]
        self.within = under_way[-1] if under_way else 0.0
        now, place = time.monotonic(), min(self.total, self.done + self.within)
        speed = f"{self.meter.clips_per_s:.1f} clips/s, device waits {self.meter.wait_share:.0%}"
        self.bar.set_postfix_str(speed, refresh=False)
        self.bar.update(place - self.bar.n)
        if self.shown and self.bar.disable and now - self.told >= _LOG_SECONDS and place > 0:
            self.told = now
            left = duration((now - self.started) * (self.total - place) / place)
            log.info("encoded %.1f of %d videos, %s, %s left", place, self.total, speed, left)


def _identity(video: Video) -> object:
    """What tells the input from another; a camera is a new one every time."""
    return uuid.uuid4().hex if isinstance(video.origin, Camera) else video.identity()


def _weights_hash(module: nn.Module) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _digest(plan: dict[str, Any]) -> str:
    fixed = {key: value for key, value in plan.items() if key != "batch_size"}
    return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()[:16]
