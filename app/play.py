"""``jepa play``: steer a world model by keyboard, and watch its dream beside the real world."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="world model: a run directory or checkpoint, or a published V-JEPA 2-AC")
    parser.add_argument(
        "--decoder", required=True, metavar="RUN", help="run that was trained to decode its latents (configs/decoder)"
    )
    parser.add_argument(
        "--env", default="rooms", help="rooms (default), an id of gymnasium, or MODULE:FUNCTION: the real world"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="options",
        help="an option of the environment, such as layout=random; may be repeated",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of the first episode (default: 0)")
    parser.add_argument("--fps", type=float, default=10.0, help="steps a second at most (default: 10)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine)")
    parser.add_argument("--port", type=int, default=0, help="port to listen on (default: 0, any that is free)")
    parser.add_argument("--no-browser", action="store_true", help="only say where the page is")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    drawing = parser.add_argument_group("generative decoders")
    drawing.add_argument("--steps", type=int, default=4, help="of the sampler, for every frame (default: 4)")
    drawing.add_argument("--guidance", type=float, default=1.0, help="1 as learned (default); more leans on the latent")
    drawing.add_argument("--noise-seed", type=int, default=0, help="of the noise that all frames share (default: 0)")


def run(args: argparse.Namespace) -> int:
    from app.planning.settings import place
    from app.playing.game import DecodingConfig, Game
    from app.playing.opening import open_model
    from app.playing.page import play_page
    from app.playing.server import PlayServer, serve
    from jepa.config import apply_overrides
    from jepa.decoding import load_decoder
    from jepa.envs.tasks import open_task

    if not 0 < args.fps <= 60:
        raise ValueError(f"--fps must be above 0 and at most 60, not {args.fps:g}")
    if not 0 <= args.seed < 2**31:
        raise ValueError(f"--seed must lie between 0 and {2**31 - 1}, not {args.seed}")
    decoding = DecodingConfig(steps=args.steps, guidance=args.guidance, seed=args.noise_seed)
    device, precision = place(args)
    model, codes = open_model(args.model)
    decoder = load_decoder(args.decoder)
    task = open_task(args.env, **apply_overrides({}, args.options))
    try:
        game = Game(
            model, decoder, task, name=args.model, codes=codes, device=device, precision=precision, decoding=decoding
        )
        page = play_page(game, args.model, args.decoder, args.env, args.fps)
        serve(PlayServer(game, page, args.seed, args.host, args.port), not args.no_browser)
    finally:
        task.close()
    return 0
