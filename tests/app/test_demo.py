"""The demo's own decisions: what it trains, how it sums a run up, and when the short one fails."""

import argparse
import json
from pathlib import Path

import pytest
from support import decoded_rows

from app import demo
from evals.settings import EvalConfig


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    demo.add_arguments(parser)
    return parser.parse_args(words)


def test_config_takes_folders_seed_length_and_overrides(tmp_path: Path) -> None:
    args = arguments("--seed", "3", "--steps", "7", "encoder.depth=2")
    config = demo.training_config(args, tmp_path / "run", tmp_path / "world")
    assert (config.run_dir, config.seed, config.train.steps) == (str(tmp_path / "run"), 3, 7)
    assert config.data.sources[0].path == str(tmp_path / "world" / "train.csv")
    assert config.encoder.depth == 2
    assert demo.training_config(arguments(), tmp_path, tmp_path).train.steps != 7


def test_summary_has_every_accuracy_and_the_median_speed(tmp_path: Path) -> None:
    records = [
        {"step": 1, "time/clips_per_s": 10.0}, {"step": 2, "time/clips_per_s": 90.0, "monitor/rankme": 5.0},
        {"step": 3, "time/clips_per_s": 60.0, "monitor/rankme": 41.04},
    ]  # fmt: skip
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    rows = [
        {"probe": "linear", "label": label, "encoder": encoder, "accuracy": share, "chance": 0.1}
        for label, encoder, share in (("object", "trained", 0.5), ("object", "random", 0.25), ("motion", "trained", 1))
    ]
    config = demo.training_config(arguments(), tmp_path, tmp_path)
    assert demo.summarise(config, {"rows": rows, "step": 3}) == {
        "linear": {"object": {"chance": 0.1, "trained": 0.5, "random": 0.25}, "motion": {"chance": 0.1, "trained": 1}},
        "clips_per_s": 60.0, "steps": 3, "rankme": 41.0,
    }  # fmt: skip


def test_a_stage_done_by_an_earlier_call_keeps_its_seconds(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    assert demo.first_seconds(path, 5, {"render": 60.0, "probe": 9.5}) == {"render": 60.0, "probe": 9.5, "total": 69.5}
    path.write_text(json.dumps({"steps": 5, "seconds": {"render": 60.0, "probe": 9.5, "total": 69.5}}))
    again = demo.first_seconds(path, 5, {"render": 0.1, "probe": 12.0})
    assert again == {"render": 60.0, "probe": 12.0, "total": 72.0}
    assert demo.first_seconds(path, 6, {"render": 0.1, "probe": 1.0})["render"] == 0.1  # another run: nothing is kept


def test_the_short_run_fails_unless_it_learned() -> None:
    demo.check_learned({"linear": {"motion": {"trained": 0.71, "random": 0.6}}})
    with pytest.raises(ValueError, match=r"did not learn: linear motion probe 0\.690 trained, 0\.600 random"):
        demo.check_learned({"linear": {"motion": {"trained": 0.69, "random": 0.6}}})


def test_physics_scores_are_those_over_all_pairs() -> None:
    rows = [
        {"predictor": name, "condition": condition, "over": over, "accuracy": share}
        for name, condition, over, share in (
            ("trained", "vanish", "mean", 1.0), ("trained", "all", "mean", 0.70004), ("trained", "all", "max", 0.5),
            ("random", "all", "mean", 0.25),
        )
    ]  # fmt: skip
    assert demo.physics_scores({"rows": rows}) == {"trained": {"mean": 0.7, "max": 0.5}, "random": {"mean": 0.25}}


def test_the_second_model_predicts_eight_frames_from_eight(tmp_path: Path) -> None:
    config = demo.forecast_config(arguments("--seed", "3"), tmp_path, tmp_path / "world")
    assert (config.run_dir, config.seed) == (str(tmp_path / "forecast"), 3)
    assert config.data.sources[0].path == str(tmp_path / "world" / "train.csv")
    assert (config.clip.num_frames, config.clip.frame_step) == (16, 1)
    assert [(mask.kind, mask.context) for mask in config.masks] == [("causal", (0.5, 0.5))]  # type: ignore[union-attr]
    short = demo.forecast_config(arguments("--short"), tmp_path, tmp_path)
    assert short.train.steps == demo.SHORT_FORECAST_STEPS < config.train.steps


def test_forecasts_are_decoded_beside_those_of_a_random_encoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[EvalConfig] = []

    def evaluate(config: EvalConfig) -> dict[str, object]:
        asked.append(config)
        return {"rows": decoded_rows()}

    monkeypatch.setattr("evals.main.evaluate", evaluate)
    config = demo.forecast_config(arguments(), tmp_path, tmp_path / "world")
    found = demo.decode(config, tmp_path / "world", demo.SHORT_DECODE, 3)
    assert list(found) == ["trained", "random", "mean frame", "copy last", "ceiling"]
    (eval_,) = asked
    assert eval_.reconstruction.places == ("forecast",)
    assert eval_.reconstruction.context == 0.5
    assert not eval_.clip
    assert (eval_.run, eval_.task, eval_.random_seed) == (str(tmp_path / "forecast"), "reconstruction", 4)
    assert "random" in eval_.baselines
    assert eval_.out == str(tmp_path / "forecast" / "evals" / "reconstruction")
    assert (eval_.train.path, eval_.test.path) == tuple(  # type: ignore[union-attr]
        str(tmp_path / "world" / f"{split}.csv") for split in ("train", "test")
    )
    assert (eval_.reconstruction.seed, eval_.reconstruction.steps) == (3, demo.SHORT_DECODE["steps"])
    with pytest.raises(TypeError, match="unexpected keyword"):
        demo.decode(config, tmp_path, {"clips": 3}, 0)


def test_decoded_scores_are_those_of_every_way_to_fill_in_what_is_hidden() -> None:
    from evals.pages.decoded_section import compared

    scores = demo.decoded_scores(compared(decoded_rows(), "forecast"))
    assert list(scores) == ["trained", "random", "mean frame", "copy last", "ceiling"]
    assert scores["trained"] == {
        "psnr": 20.1235, "moving": 15.0, "near": 0.75, "near_last": 0.5, "near_throughout": 0.25,
    }  # fmt: skip
    assert scores["copy last"]["moving"] is None
    assert json.loads(json.dumps(scores)) == scores


def test_every_stage_leaves_its_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stages are stubs: what is checked is what becomes of their results, in summary.json and in what is printed."""
    from evals.pages.decoded_section import compared

    rows = [
        {"probe": "linear", "label": "motion", "encoder": encoder, "accuracy": share, "chance": 0.25}
        for encoder, share in (("trained", 0.75), ("random", 0.5))
    ]
    decoded = compared(decoded_rows(), "forecast")
    (tmp_path / "metrics.jsonl").write_text("")
    settings: list[dict[str, int]] = []
    monkeypatch.setattr(demo, "render_world", lambda folder, _: folder)
    monkeypatch.setattr(demo, "pretrain", lambda _: None)
    monkeypatch.setattr(demo, "probe", lambda *_: {"rows": rows, "step": 2, "table": "PROBES"})
    monkeypatch.setattr(demo, "judge", lambda *_: {"rows": [], "table": "PHYSICS"})
    monkeypatch.setattr(demo, "decode", lambda _, __, chosen, ___: settings.append(chosen) or decoded)
    monkeypatch.setattr(demo, "draw", lambda *_: tmp_path / "report.html")
    for more in ((), ("--short",)):
        demo.run(arguments("--out", str(tmp_path), *more))
    assert settings == [demo.DECODE, demo.SHORT_DECODE]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["decoded"] == demo.decoded_scores(decoded)
    stages = ["render", "pretrain", "probe", "physics", "forecast", "decode", "report"]
    assert list(summary["seconds"]) == [*stages, "total"]
    printed = capsys.readouterr().out
    assert "[6/7] decode\n[7/7] report\n" in printed
    assert "\nAt hidden places its decoded predictions reach 20.1 dB (random 16.0" in printed
