"""The pipeline between decoding and rows: memory that runs out, who waits for whom, processes that die."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from jepa.data.batches import read_ahead
from jepa.data.video import VideoError
from jepa.distributed import Run
from jepa.encode import encode
from jepa.feed import Origin, Task, Work, choose_workers, in_background
from jepa.forward import Forward, choose_batch_size, patch_size, tubelet_size
from jepa.inputs import list_inputs
from jepa.models.encoder import Encoder, EncoderConfig
from jepa.types import Batch, ClipConfig, TokenGrid

CLIP = ClipConfig(num_frames=4, fps=10.0, crop_size=32)
CPU = torch.device("cpu")


def build(kind: type[Encoder] = Encoder) -> Encoder:
    torch.manual_seed(0)
    return kind(EncoderConfig(embed_dim=24, depth=2, num_heads=2, patch_size=16, tubelet_size=2), CLIP).eval()


class Small(Encoder):
    """Has memory for two clips."""

    sizes: list[int]

    def forward(self, clip: Tensor, context_ids: Tensor | None = None, layers: Any = None) -> Any:
        self.sizes.append(len(clip))
        if len(clip) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().forward(clip, context_ids, layers)


def test_auto_batches_are_halved_until_they_fit(caplog: pytest.LogCaptureFixture) -> None:
    clips = torch.randint(0, 256, (7, 3, 4, 32, 32), dtype=torch.uint8)
    small = build(Small)
    small.sizes = []
    with caplog.at_level(logging.INFO, "jepa"):
        found = encode(clips, small)
    torch.testing.assert_close(found.tokens, encode(clips, build()).tokens)
    assert small.sizes == [7, 4, 2, 2, 2, 1]
    assert "out of memory with 7 clips at once: going on with 4" in caplog.text
    with pytest.raises(ValueError, match=r"out of memory on cpu with 7 clips of \[3, 4, 32, 32\]: set a smaller batch"):
        encode(clips, small, 7)


def test_the_automatic_batch_size_counts_tokens() -> None:
    model = build()
    assert choose_batch_size("auto", model, CLIP, CPU) == 64
    large = ClipConfig(num_frames=16, fps=10.0, crop_size=256)
    assert choose_batch_size("auto", model, large, CPU) == 4096 // (8 * 16 * 16)
    assert choose_batch_size(5, model, large, CPU) == 5


class Pooled(Encoder):
    """One token per frame, whatever the picture's size."""

    def grid_of(self, clip_shape: Any) -> TokenGrid:
        return super().grid_of(clip_shape)._replace(h=1, w=1)


def test_patches_and_tubelets_are_found_behind_any_grid() -> None:
    for kind in (Encoder, Pooled):
        assert (patch_size(build(kind)), tubelet_size(build(kind))) == (16, 2)


def works(count: int) -> Iterator[Work]:
    for number in range(count):
        clip = torch.zeros(1, 3, 4, 32, 32, dtype=torch.uint8)
        yield Work(Batch(clip=clip), [Origin(number, 0, 0.0, 0.4, 0, 2)], [])


def encodes(act: Callable[[], object]) -> Forward:
    """Encodes on the CPU; ``act`` is called while it computes."""
    model = build()
    model.register_forward_pre_hook(lambda *_: (act(), None)[1])
    return Forward(model, Run(CPU, "fp32"), CLIP, None, "mean", None, False)


def test_decoding_and_computing_overlap() -> None:
    """A batch is computed only when the one after it has been decoded: one after the other that would never be."""
    ready = threading.Semaphore(0)

    def decoded() -> Iterator[Work]:
        for number, work in enumerate(works(12)):
            if number:
                ready.release()
            yield work
        ready.release()

    def wait() -> None:
        assert ready.acquire(timeout=60)

    forward = encodes(wait)
    rows = [encoded.rows for encoded in forward(in_background(decoded(), depth=2))]
    assert len(rows) == forward.meter.clips == 12


@pytest.mark.parametrize(("decode_s", "share"), [(0.0, 0.0), (1.0, 11 / 47), (9.0, 99 / 135)])
def test_waiting_for_data_is_measured(monkeypatch: pytest.MonkeyPatch, decode_s: float, share: float) -> None:
    """12 batches of 3 s: from the first one on, 11 times is waited."""
    clock = [100.0]
    monkeypatch.setattr("jepa.forward.time", SimpleNamespace(perf_counter=lambda: clock[0]))

    def pass_by(seconds: float) -> None:
        clock[0] += seconds

    def decoded() -> Iterator[Work]:
        for work in works(12):
            pass_by(decode_s)
            yield work

    forward = encodes(lambda: pass_by(3.0))
    assert len(list(forward(decoded()))) == 12
    assert forward.meter.wait_share == pytest.approx(share)


def test_an_error_of_the_thread_is_raised_where_its_items_are_used() -> None:
    def broken() -> Iterator[Work]:
        yield from works(2)
        raise ValueError("frame 7 is bad")

    items = in_background(broken(), depth=2)
    assert next(items).origins[0].video == 0
    assert next(items).origins[0].video == 1
    with pytest.raises(ValueError, match="frame 7 is bad"):
        next(items)


def count_up(task: int) -> Iterator[int]:
    yield from range(10 * task, 10 * task + task)


def die(task: int) -> Iterator[int]:
    yield 1
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("workers", [0, 1, 2, 9])
def test_tasks_are_read_in_order_by_any_number_of_workers(workers: int) -> None:
    found = [list(elements) for elements in read_ahead([3, 0, 2, 5, 1], count_up, workers)]
    assert found == [[30, 31, 32], [], [20, 21], [50, 51, 52, 53, 54], [10]]


def test_a_worker_that_dies_is_a_clear_error() -> None:
    with pytest.raises(VideoError, match=r"a worker process died .*fewer workers"):
        [list(elements) for elements in read_ahead([1, 2], die, 1)]


def test_few_files_start_no_processes(tmp_path: Any) -> None:
    videos = list_inputs([tmp_path / f"{k}.mp4" for k in range(6)], CLIP)
    tasks = [Task(number, video) for number, video in enumerate(videos)]
    assert choose_workers("auto", tasks[:3], False, True, 1) == 0
    assert choose_workers("auto", tasks[:1], True, True, 1) == 1
    assert 1 <= choose_workers("auto", tasks, False, False, 1) <= 6
    assert choose_workers(5, tasks, False, True, 1) == 5
