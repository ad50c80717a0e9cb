"""Encoder forward, ours against ``transformers``: same size, same clips, in turns.

    python benchmarks/encode.py [--dtype bf16] [--size vit_base] [--crop-size 224]

Prints median seconds, ratio, tokens/s, and achieved GFLOP/s as a share of the measured GEMM peak.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that the file runs by path, too

from benchmarks import common
from jepa.models import Encoder, EncoderConfig, PredictorConfig
from jepa.types import ClipConfig


def main() -> None:
    options = common.arguments(__doc__ or "", size="vit_small", batch_size=2, repeats=7)
    common.import_transformers()
    torch.manual_seed(0)
    device, config = options.device, EncoderConfig(size=options.size)
    clip = ClipConfig(num_frames=options.num_frames, fps=4, crop_size=options.crop_size)
    ours = Encoder(config, clip).to(device).eval()
    peer = common.build_peer(config.shape, config, clip, PredictorConfig(embed_dim=48, depth=1, num_heads=4), 2).encoder
    peer = peer.to(device).eval()
    assert common.parameters(ours) == common.parameters(peer), "the two encoders differ in size"
    video = torch.randn(options.batch_size, 3, clip.num_frames, clip.crop_size, clip.crop_size, device=device)
    video_peer = video.transpose(1, 2).contiguous()  # transformers wants [B, T, C, H, W]
    if options.compile:
        ours, peer = torch.compile(ours), torch.compile(peer)
    print(
        f"{options.size}, {common.parameters(ours) / 1e6:.1f} M parameters, {clip.num_frames} frames at "
        f"{clip.crop_size} px, batch {options.batch_size}: {ours.grid.size} tokens per clip; "
        f"{common.describe_machine(device)}"
    )
    flops = options.batch_size * (
        common.forward_flops(config.shape, ours.grid.size) + common.patch_flops(ours, ours.grid.size)
    )
    medians: dict[str, dict[str, float]] = {}
    for dtype in ("fp32", "bf16") if options.dtype == "both" else (options.dtype,):

        @torch.inference_mode()
        def run_ours(dtype: str = dtype) -> None:
            with common.autocast(device, dtype):
                ours(video)

        @torch.inference_mode()
        def run_peer(dtype: str = dtype) -> None:
            with common.autocast(device, dtype):
                peer(video_peer)

        print(f"\n{dtype}")
        peak = common.peaks(dtype, device, options.clock)
        runs = {"jepa": run_ours, "transformers": run_peer}
        medians[dtype] = common.alternate(runs, options.repeats, device, options.clock)
        common.report(medians[dtype], flops, options.batch_size * ours.grid.size, peak)
        common.breakdown(runs, device)
    common.report_best(medians)


if __name__ == "__main__":
    main()
