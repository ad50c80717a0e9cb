"""Features by ``jepa`` and by ``transformers``: the same V-JEPA 2 weights, the same clips and videos, in turns.

    python benchmarks/encode.py [--dtype bf16] [--size vit_base] [--crop-size 224] [--videos 16] [--compile]

First the encoder alone; then whole video files, decoding and preprocessing included: ``jepa.encode`` against the loop
that the peer's documentation shows (decord, video processor, model), which has no workers. Prints median seconds,
ratio, features (tokens) per second, achieved GFLOP/s as a share of the measured GEMM peak, and the share of time that
``jepa.encode`` waits for videos, for files as filmed and prepared by ``jepa data prepare``.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that the file runs by path, too

import jepa
from benchmarks import common
from jepa.data.encoding import write_video
from jepa.models import Encoder, EncoderConfig, PredictorConfig
from jepa.models.flops import encoder_flops
from jepa.types import ClipConfig

FPS, SECONDS, SIDE = 25, 4, 320  # of the made videos
Runs = dict[str, Callable[[], Any]]


def main() -> None:
    options = common.arguments(__doc__ or "", size="vit_small", batch_size=2, repeats=7, extra={"--videos": 12})
    common.import_transformers()
    torch.manual_seed(0)
    device, dtypes = options.device, ("fp32", "bf16") if options.dtype == "both" else (options.dtype,)
    clip = ClipConfig(num_frames=options.num_frames, fps=4, crop_size=options.crop_size)
    with tempfile.TemporaryDirectory() as folder:
        ours, peer = same_weights(options.size, clip, Path(folder) / "model", device)
        print(
            f"{options.size}, {common.parameters(ours) / 1e6:.1f} M parameters, {clip.num_frames} frames at "
            f"{clip.crop_size} px, batch {options.batch_size}: {ours.grid.size} tokens per clip; "
            f"{common.describe_machine(device)}"
        )
        medians = {dtype: encoder_alone(options, dtype, ours, peer) for dtype in dtypes}
        common.report_best(medians)
        if options.videos:
            filmed = make_videos(Path(folder) / "filmed", options.videos, gop=250)
            prepared = make_videos(Path(folder) / "prepared", options.videos, gop=8, side=options.crop_size)
            for dtype in dtypes:
                whole_files(options, dtype, ours, peer, {"as filmed": filmed, "prepared": prepared})


def same_weights(size: str, clip: ClipConfig, folder: Path, device: str) -> tuple[Encoder, Any]:
    """Our encoder and the peer's from one folder in the peer's layout; their features are compared first."""
    config = EncoderConfig(size=size)
    whole = common.build_peer(config.shape, config, clip, PredictorConfig(embed_dim=48, depth=1, num_heads=4), 2)
    whole.save_pretrained(folder)
    ours = jepa.load_pretrained(folder, "transformers", clip=clip).encoder
    assert ours is not None
    video = torch.randn(1, 3, clip.num_frames, clip.crop_size, clip.crop_size)
    with torch.inference_mode():
        expected = whole.eval().get_vision_features(video.transpose(1, 2))
        difference = (ours(video) - expected).abs().max().item()
    print(f"same weights: features differ by at most {difference:.1e} (largest feature {expected.abs().max():.1f})")
    assert difference < 1e-3, "the two encoders do not compute the same"
    return ours.to(device), whole.encoder.to(device)


def encoder_alone(options: Any, dtype: str, ours: Encoder, peer: Any) -> dict[str, float]:
    """Both encoders on the same random clips."""
    clip, device = ours.clip, options.device
    video = torch.randn(options.batch_size, 3, clip.num_frames, clip.crop_size, clip.crop_size, device=device)
    video_peer = video.transpose(1, 2).contiguous()  # transformers wants [B, T, C, H, W]
    run_ours, run_peer = (torch.compile(m) if options.compile else m for m in (ours, peer))

    @torch.inference_mode()
    def encode_ours() -> None:
        with common.autocast(device, dtype):
            run_ours(video)

    @torch.inference_mode()
    def encode_peer() -> None:
        with common.autocast(device, dtype):
            run_peer(video_peer)

    print(f"\nencoder alone, {dtype}")
    peak = common.peaks(dtype, device, options.clock)
    runs: Runs = {"jepa": encode_ours, "transformers": encode_peer}
    medians = common.alternate(runs, options.repeats, device, options.clock)
    tokens = options.batch_size * ours.grid.size
    flops = options.batch_size * encoder_flops(ours, ours.grid.size, trained=False)
    common.report(medians, flops, tokens, peak)
    common.breakdown(runs, device)
    return medians


# ---- whole files -----------------------------------------------------------------------------------------------------


def make_videos(folder: Path, count: int, gop: int, side: int = SIDE) -> list[str]:
    """Drifting, grainy gratings as h264, ``SECONDS`` long."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    frames, rows, columns = np.meshgrid(np.arange(FPS * SECONDS), np.arange(side), np.arange(side), indexing="ij")
    for number in range(count):
        wave = np.sin(columns / (5 + number) + rows / 30 + frames * (0.1 + 0.03 * number))
        grey = (127 + 90 * wave + rng.normal(0, 6, wave.shape)).clip(0, 255).astype(np.uint8)
        write_video(folder / f"{number:03}.mp4", np.repeat(grey[..., None], 3, axis=-1), FPS, gop=gop)
    return sorted(map(str, folder.iterdir()))


def peer_loop(peer: Any, clip: ClipConfig, device: str, dtype: str, batch_size: int) -> Callable[[list[str]], None]:
    """Videos to features as users of the peer write it."""
    import decord  # the reader of the peer's own examples
    import transformers

    processor = transformers.VJEPA2VideoProcessor(
        crop_size={"height": clip.crop_size, "width": clip.crop_size}, size={"shortest_edge": clip.crop_size}
    )

    @torch.inference_mode()
    def run(paths: list[str]) -> None:
        for start in range(0, len(paths), batch_size):
            videos = []
            for path in paths[start : start + batch_size]:
                reader = decord.VideoReader(path)
                span = int(clip.num_frames / (clip.fps or 1) * reader.get_avg_fps())
                first = max(0, (len(reader) - span) // 2)
                ids = np.linspace(first, min(first + span, len(reader)) - 1, clip.num_frames).astype(int)
                videos.append(torch.from_numpy(reader.get_batch(ids).asnumpy()).permute(0, 3, 1, 2))
            pixels = processor(videos, return_tensors="pt")["pixel_values_videos"].to(device)
            with common.autocast(device, dtype):
                peer(pixels).last_hidden_state.float().cpu()

    return run


def whole_files(options: Any, dtype: str, ours: Encoder, peer: Any, folders: dict[str, list[str]]) -> None:
    """From paths to features on the CPU, both sides in turns."""
    loop = peer_loop(peer, ours.clip, options.device, dtype, options.batch_size)
    tokens = ours.grid.size * options.videos
    for name, paths in folders.items():

        def encode_ours(paths: list[str] = paths) -> Any:
            return jepa.encode(
                paths, ours, batch_size=options.batch_size, device=options.device, precision=dtype, workers="auto"
            )

        runs: Runs = {"jepa.encode": encode_ours, "transformers": lambda paths=paths: loop(paths)}
        print(f"\nwhole files, {name} ({len(paths)} videos of {SECONDS} s), {dtype}")
        medians = common.alternate(runs, max(3, options.repeats // 2), options.device, options.clock)
        slowest = list(medians.values())[-1]
        for side, seconds in medians.items():
            print(
                f"  {side:<16}{seconds:>8.3f} s{slowest / seconds:>7.2f}x{tokens / seconds:>11,.0f} features/s"
                f"{options.videos / seconds:>9.1f} clips/s"
            )
        with tempfile.TemporaryDirectory() as folder:
            told = jepa.encode_files(
                paths * 4, Path(folder) / "features.parquet", ours, device=options.device, precision=dtype, pool="mean"
            )
        print(f"  streamed to disk: {told.clips_per_s:.1f} clips/s, waits for videos {told.wait_share:.0%}")


if __name__ == "__main__":
    main()
