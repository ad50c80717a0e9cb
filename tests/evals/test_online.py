"""Online probes: the same training with and without, within a share of its time, on the probes of ``jepa eval``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support import SMALL_CLIP, error_of, write_clips
from test_distributed import outputs

from evals import online_clips
from evals.online import Budget, OnlineProbes, Seen, probe_config
from evals.online_clips import Clips, choose
from evals.probes import fit_probe
from jepa.checkpoint import load_checkpoint
from jepa.config import ConfigError, from_dict, merge
from jepa.data.batches import eval_batches
from jepa.data.sources import SourceConfig, open_source
from jepa.data.transforms import ClipTransform
from jepa.distributed import Run
from jepa.logging import RunLog, StepTimer, read_metrics, trained_seconds
from jepa.session import build
from jepa.train import TrainConfig, fit

COLOURS = {"red": (200, 20, 20), "blue": (20, 20, 200), "green": (20, 200, 20)}


def with_online(
    settings: dict[str, Any], loop: dict[str, Any] | None = None, holdout: int = 4, **online: Any
) -> TrainConfig:
    """``settings`` with some clips held out, online probes of few steps, and ``loop`` laid over the training loop."""
    small = {"every": 1, "train_clips": 8, "test_clips": 4, "steps": 5, "max_share": 1.0, "probes": ["linear", "knn"]}
    changes = {"data": {"holdout": holdout}, "train": loop or {}, "online": {**small, **online}}
    return from_dict(TrainConfig, merge(settings, changes))


def open_probes(config: TrainConfig, **options: Any) -> OnlineProbes:
    session = build(config, Run(torch.device("cpu"), "fp32"))
    return OnlineProbes(session, RunLog(config.run_dir, total_steps=4, progress="off", tensorboard=False), **options)


def look(probes: OnlineProbes, step: int = 0) -> dict[str, Any]:
    probes.look(step)
    probes.log.close()
    return read_metrics(probes.session.config.run_dir)[-1]


def coloured_pictures(folder: Path, clips: int = 36) -> Path:
    """A CSV of plain pictures with the columns colour (three) and tone (light or dark; a third have none)."""
    rows = ["path,colour,tone"]
    rng = np.random.default_rng(0)
    folder.mkdir()
    for number in range(clips):
        name, tone = list(COLOURS)[number % 3], number // 3 % 3
        scale = (1.0, 0.3, 0.6)[tone]
        pixels = np.array(COLOURS[name]) * scale + rng.normal(0, 8, (32, 32, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.png")
        rows.append(f"{number}.png,{name},{('light', 'dark', '')[tone]}")
    (folder / "pictures.csv").write_text("\n".join(rows))
    return folder / "pictures.csv"


# ---- the share -------------------------------------------------------------------------------------------------------


def test_a_look_fits_when_it_and_what_was_spent_stay_within_the_share() -> None:
    budget = Budget(max_share=0.25, spent_s=2.0)
    assert budget.fits(0.0)  # the first look's cost is not known
    budget.expected_s = 1.0
    assert [t for t in range(16) if budget.fits(t)] == [12, 13, 14, 15]


def test_looks_wait_until_the_share_allows_them(settings: dict[str, Any]) -> None:
    """Steps of one second, looks of one second by a fake clock, at most an eighth of the time, wanted every ten steps.
    """
    now = [0.0]

    def tick() -> float:
        now[0] += 0.5  # asked for at the beginning of a look and at its end
        return now[0] * 2

    config = with_online(settings, {"steps": 100}, every=10, max_share=0.125)
    probes = open_probes(config, clock=tick)
    some = Seen(torch.arange(2), torch.zeros(2, 3), None)
    probes._encode = lambda clips: some  # type: ignore[method-assign]
    probes._probe = lambda train, test: {"online/label/linear": 0.5}  # type: ignore[method-assign]
    looked, shares = [], []
    for step in range(101):
        if probes.due(step, float(step)):
            probes.look(step)
            looked.append(step)
            shares.append(probes.budget.spent_s / max(step, 1e-9))
    probes.log.close()
    assert looked == [0, 16, 24, 32, 40, 50, 60, 70, 80, 90, 100]
    assert max(shares[1:]) <= 0.125
    records = [r for r in read_metrics(config.run_dir) if "time/online_s" in r]
    assert [r["time/online_s"] for r in records] == [1.0] * 11
    assert [r.get("time/online_share") for r in records] == [None, *shares[1:]]
    log = (Path(config.run_dir) / "log.txt").read_text()
    assert log.count("online probes wait") == 1
    assert "step 10: online probes wait: 1 s so far and about 1 s for another look are more than 12.5 %" in log


def test_time_of_training_leaves_pauses_out(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("jepa.logging.time.perf_counter", lambda: now[0])
    timer = StepTimer()
    now[0] = 3.0
    with timer.paused() as trained_s:
        assert trained_s == 3.0
        now[0] = 10.0
    now[0] = 14.0
    with timer.paused() as trained_s:
        assert trained_s == 7.0
    records = [{"step": 0, "monitor/x": 1.0}, {"step": 4, "time/step_s": 0.5}, {"step": 10, "time/step_s": 2.0}]
    assert trained_seconds(records) == 14.0


def test_a_continued_run_keeps_its_account(settings: dict[str, Any]) -> None:
    config = with_online(settings, {"steps": 100}, every=10, max_share=0.5)
    Path(config.run_dir).mkdir()
    records = [
        {"step": 0, "time/online_s": 3.0}, {"step": 8, "time/step_s": 1.0}, {"step": 12, "time/step_s": 2.0},
        {"step": 12, "time/online_s": 1.0},
    ]  # fmt: skip
    Path(config.run_dir, "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    session = build(config, Run(torch.device("cpu"), "fp32"))
    log = RunLog(config.run_dir, total_steps=100, start_step=12, progress="off", tensorboard=False)
    probes = OnlineProbes(session, log)
    log.close()
    assert (probes.budget.spent_s, probes.budget.expected_s, probes.before_s) == (4.0, 3.0, 16.0)
    assert not probes.due(19, 7.0)  # looked in this ten already
    assert probes.due(20, 0.0) is (4 + 3 <= 0.5 * 16)
    assert not probes.due(20, -4.0)  # 7 s are more than half of 12 s


# ---- training does not notice ----------------------------------------------------------------------------------------


def test_training_is_the_same_bit_for_bit_also_after_a_resume(settings: dict[str, Any], tmp_path: Path) -> None:
    settings["objective"]["regularizer"] = {"kind": "sigreg", "num_slices": 8}  # draws random numbers in every step
    loop = {"save_every": 1, "keep_last": 9, "log_every": 1}
    plain = merge(settings, {"data": {"holdout": 4}})
    probed = merge(settings, {"run_dir": str(tmp_path / "probed")})
    kinds = ["linear", "attentive", "knn", "logistic"]
    for steps in (2, 4):  # the second time both are continued
        fit(from_dict(TrainConfig, merge(plain, {"train": {**loop, "steps": steps}})))
        fit(with_online(probed, {**loop, "steps": steps}, probes=kinds), OnlineProbes)
    for step in range(1, 5):
        one, two = (load_checkpoint(f"{s['run_dir']}/checkpoints/step_{step:08d}.pt") for s in (plain, probed))
        torch.testing.assert_close(one["objective"], two["objective"], rtol=0, atol=0)
        torch.testing.assert_close(one["optimizer"], two["optimizer"], rtol=0, atol=0)
        assert torch.equal(one["rng"][0]["torch"], two["rng"][0]["torch"])
        assert torch.equal(one["rng"][0]["numpy"]["key"], two["rng"][0]["numpy"]["key"])
    losses = [[r["loss"] for r in read_metrics(s["run_dir"]) if "loss" in r] for s in (plain, probed)]
    assert losses[0] == losses[1]
    records = [r for r in read_metrics(probed["run_dir"]) if "time/online_s" in r]
    assert (records[0]["step"], records[-1]["step"]) == (0, 4)
    assert {name for name in records[0] if name.startswith("online/")} == {
        f"online/label/{kind}" for kind in (*kinds, "chance")
    }


def test_modes_random_states_and_gradients_are_left_alone(settings: dict[str, Any]) -> None:
    probes = open_probes(with_online(settings))
    encoder = probes.session.objective.target_encoder
    encoder.train()
    encoder.norm.eval()  # whoever freezes one layer finds it frozen afterwards
    seen = []
    encoder.register_forward_hook(lambda module, *_: seen.append(module.training))
    torch.manual_seed(3)
    probes.look(0)
    drawn = torch.rand(2)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(2))
    assert (encoder.training, encoder.norm.training, set(seen)) == (True, False, {False})
    assert all(p.grad is None for p in probes.session.objective.parameters())
    probes.log.close()


def test_two_processes_probe_once(tmp_path: Path, settings: dict[str, Any]) -> None:
    online = {"every": 1, "train_clips": 6, "test_clips": 4, "steps": 3, "max_share": 1.0}
    settings = merge(settings, {"data": {"holdout": 4}, "train": {"steps": 2, "device": "cpu"}, "online": online})
    path = tmp_path / "config.json"
    path.write_text(json.dumps(settings))
    outputs(f"import sys; from app.cli import main; sys.exit(main(['train', {str(path)!r}]))")
    steps = [r["step"] for r in read_metrics(settings["run_dir"]) if "online/label/linear" in r]
    assert (steps[0], steps[-1], len(steps)) == (0, 2, len(set(steps)))


# ---- what is measured ------------------------------------------------------------------------------------------------


def test_the_figures_are_those_of_fit_probe_on_features_made_one_by_one(settings: dict[str, Any]) -> None:
    config = with_online(settings, probes=["linear", "attentive", "knn"], token_pool=[2, 2, 1])
    probes = open_probes(config)
    record = look(probes)
    encoder, clip = probes.session.objective.target_encoder.eval(), config.clip
    features, labels = [], []
    for side in probes.sides[:2]:
        batches = list(eval_batches(side.sources, clip, 1))
        with torch.no_grad():
            tokens = torch.cat([encoder(ClipTransform(clip)(batch).clip) for batch in batches])
        grid = tokens.unflatten(1, tuple(encoder.grid))  # [K, t, h, w, D], averaged over 2 tubelets x 2 rows
        pooled = grid.unflatten(1, (-1, 2)).unflatten(3, (-1, 2)).mean(dim=(2, 4)).flatten(1, 3)
        features.append((tokens.mean(dim=1), pooled))
        labels.append(torch.cat([batch.label for batch in batches]))  # type: ignore[misc]
    assert [len(known) for known in labels] == [8, 4]
    assert labels[1].bincount().tolist() == probes.sides.test.labels["label"].bincount().tolist()
    for kind in config.online.probes:  # type: ignore[union-attr]
        x, x_test = (seen[kind == "attentive"] for seen in features)
        wanted = fit_probe(probe_config(config.online, kind), x, labels[0], x_test, labels[1])  # type: ignore[arg-type]
        assert record[f"online/label/{kind}"] == wanted.accuracy
        assert record["online/label/chance"] == wanted.chance


def test_two_columns_of_a_csv(settings: dict[str, Any], tmp_path: Path) -> None:
    path = coloured_pictures(tmp_path / "pictures")
    settings["data"]["sources"] = [{"path": str(path), "label_column": "colour"}]
    config = with_online(
        settings, holdout=12, labels=["colour", "tone"], train_clips=18, test_clips=9, steps=40
    )
    probes = open_probes(config)
    record = look(probes)
    sides = probes.sides
    assert {name for name in record if name.startswith("online/")} == {
        f"online/{label}/{probe}" for label in ("colour", "tone") for probe in ("linear", "knn", "chance")
    }
    assert record["online/colour/linear"] == 1.0  # plain colours: any encoder tells them
    assert sides.classes == {"colour": ("blue", "green", "red"), "tone": ("dark", "light")}
    assert -1 in sides.train.labels["tone"].tolist()  # pictures without a tone still have their colour
    assert probes.summary == f"online/colour/linear {record['online/colour/linear']:.3g}"
    trained = {p for source in probes.session.loader.sources for p in source.paths}
    tested = {p for source in sides.test.sources for p in source.paths}
    assert len(tested) == 9
    assert not tested & trained  # held out from the pretraining too
    for side in sides[:2]:  # the labels stand beside the right pictures
        names = [Path(p).stem for source in side.sources for p in source.paths]
        assert [list(COLOURS)[int(n) % 3] for n in names] == [sides.classes["colour"][i] for i in side.labels["colour"]]


def test_sources_of_their_own_and_classes_by_name(settings: dict[str, Any], tmp_path: Path) -> None:
    path = coloured_pictures(tmp_path / "pictures")
    lines = path.read_text().splitlines()
    for name, rows in {"fit": lines[1:19], "score": lines[19:]}.items():
        kept = [row for row in rows if name == "score" or ",red," not in row]
        (path.parent / f"{name}.csv").write_text("\n".join([lines[0], *kept]))
    own = {side: {"path": str(path.parent / f"{file}.csv"), "label_column": "colour"}
           for side, file in (("train", "fit"), ("test", "score"))}  # fmt: skip
    config = with_online(settings, holdout=0, **own, train_clips=12, test_clips=18, steps=40)
    probes = open_probes(config)
    record = look(probes)
    assert probes.sides.classes == {"colour": ("blue", "green", "red")}  # ids by name, over both files
    assert record["online/colour/linear"] == pytest.approx(2 / 3)  # red was never seen: its third of the clips is wrong


def test_clips_are_chosen_class_by_class() -> None:
    labels = np.repeat([0, 1, 2, -1], [60, 30, 10, 50])[None]
    found = choose(labels, 20, 0)
    assert np.bincount(labels[0, found]).tolist() == [12, 6, 2]
    assert (np.diff(found) > 0).all()
    assert np.array_equal(found, choose(labels, 20, 0))
    assert not np.array_equal(found, choose(labels, 20, 1))
    assert choose(labels, 500, 0).tolist() == list(range(100))
    two = np.stack([np.repeat([0, 1], 400), np.tile([0, 0, 0, 1], 200)])
    both = two[:, choose(two, 80, 0)]
    assert np.bincount(both[0] * 2 + both[1]).tolist() == [30, 10, 30, 10]


def test_clips_beyond_the_memory_are_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(SourceConfig(path=str(write_clips(tmp_path / "clips.npz", clips=11))))
    read: list[int] = []
    real = online_clips.eval_batches

    def counted(*args: Any, **options: Any) -> Any:
        for batch in real(*args, **options):
            read.append(len(batch.clip))
            yield batch

    monkeypatch.setattr(online_clips, "eval_batches", counted)
    one = 4 * 3 * 32 * 32
    for most, again in ((100 * one, 0), (8 * one, 3), (7 * one, 7), (0, 11)):
        clips = Clips(sources=[source], clip=SMALL_CLIP, batch_size=4, workers=0, most_bytes=most)
        first, read[:] = list(clips.batches()), []
        second = list(clips.batches())
        assert sum(read) == again
        assert torch.cat([b.index for b in first]).tolist() == list(range(11))  # type: ignore[misc]
        assert torch.cat([b.index for b in second]).tolist() == list(range(11))  # type: ignore[misc]
        assert torch.equal(torch.cat([b.clip for b in first]), torch.cat([b.clip for b in second]))


def test_unreadable_test_clips_are_errors(settings: dict[str, Any], tmp_path: Path) -> None:
    path = coloured_pictures(tmp_path / "pictures")
    settings["data"]["sources"] = [{"path": str(path), "label_column": "colour"}]
    config = with_online(settings, holdout=12, train_clips=18, test_clips=8, steps=40)
    probes = open_probes(config)
    Path(probes.sides.test.sources[0].paths[3]).write_text("not a picture")
    Path(probes.sides.train.sources[0].paths[0]).write_text("not a picture")
    record = look(probes)
    assert record["online/colour/linear"] == 7 / 8
    assert (Path(config.run_dir) / "log.txt").read_text().count("left out of the online probes") == 2


def test_collapsed_and_spoilt_encoders_do_not_end_the_run(settings: dict[str, Any]) -> None:
    probes = open_probes(with_online(settings, probes=["linear", "attentive", "knn", "logistic"]))
    encoder = probes.session.objective.target_encoder
    with torch.no_grad():
        encoder.norm.weight.zero_()  # every token becomes the same vector
    probes.look(0)
    with torch.no_grad():
        encoder.norm.weight.fill_(float("nan"))
    record = look(probes, 1)
    collapsed = read_metrics(probes.session.config.run_dir)[0]
    assert all(0 <= collapsed[f"online/label/{kind}"] <= 1 for kind in probes.online.probes)
    assert [name for name in record if name.startswith("online/")] == []
    assert "step 1: no online probes, as the features are not finite" in Path(
        probes.session.config.run_dir, "log.txt"
    ).read_text()


# ---- users' mistakes -------------------------------------------------------------------------------------------------


def wrong(settings: dict[str, Any], message: str, holdout: int = 4, **online: Any) -> None:
    config = with_online(settings, holdout=holdout, **online)
    with pytest.raises(ConfigError, match=message):
        open_probes(config)


def test_labels_that_cannot_be_probed_are_named(settings: dict[str, Any], tmp_path: Path) -> None:
    wrong(settings, r"'online.labels': .*clips.npz has no columns, so no 'colour'; leave online.labels out",
          labels=["colour"])  # fmt: skip
    wrong(settings, r"'online.test': the run has neither data.validation nor data.holdout", holdout=0)
    wrong(settings, r"'online.token_pool': \(1, 3, 1\) must divide the token grid \(2, 4, 4\)", token_pool=[1, 3, 1],
          probes=["attentive"])  # fmt: skip
    wrong(settings, r"'online.train': data source nowhere does not exist", train={"path": "nowhere"})
    same = {"path": settings["data"]["sources"][0]["path"]}
    wrong(settings, r"'online.test': \d+ of its videos are among the training clips too, the first: .*npz\[\d+\];",
          train=same, test=same, test_clips=8)  # fmt: skip
    open_probes(with_online(settings, train=same, test=same, test_clips=8, allow=["leak"])).log.close()
    csv = coloured_pictures(tmp_path / "pictures")
    settings["data"]["sources"] = [{"path": str(csv), "label_column": "colour"}]
    wrong(settings, r"'online.labels': .*pictures.csv has no column 'color'; its columns: path, colour, tone",
          labels=["colour", "color"])  # fmt: skip
    settings["data"]["sources"] = [{"path": str(csv), "label_column": "colour", "where": {"colour": "red"}}]
    wrong(settings, r"'online.labels': all chosen training clips have the colour 'red'; a probe needs at least two")
    settings["data"]["sources"] = [{"path": str(csv), "label_column": "path"}]
    wrong(settings, r"'online.train_clips': 8 leaves one clip of each path", holdout=4)
    settings["data"]["sources"] = [{"path": str(csv)}]  # it has no column called label
    wrong(settings, r"'online.train': fewer than two of the clips chosen from .* have a label 'label'; name a column")


def test_a_config_says_what_is_wrong(settings: dict[str, Any], tmp_path: Path) -> None:
    for online, message in (
        ({"evry": 3}, r"unknown config key 'online.evry', did you mean 'every'"),
        ({"every": 0}, r"'online': every must be at least 1, not 0"),
        ({"max_share": 0}, r"'online': max_share must be a share of the training time above 0, at most 1, not 0.0"),
        ({"probes": []}, r"there must be a probe"),
        ({"probes": ["forest"]}, r"'online.probes.0' must be one of 'linear'"),
        ({"token_pool": [0, 1, 1]}, r"token_pool must be at least 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            with_online(settings, **online)
    with pytest.raises(ConfigError, match=r"key 'online' needs fit\(config, evals.online.OnlineProbes\)"):
        fit(with_online(settings))


def test_the_command_line_switches_it_on(settings: dict[str, Any], tmp_path: Path,
                                         capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    from app.cli import main

    path = tmp_path / "config.json"
    settings["train"] |= {"tensorboard": True, "progress": "lines", "log_every": 1}
    path.write_text(json.dumps(settings))
    options = ["data.holdout=4", "online.every=2", "online.max_share=1", "online.probes=[linear]", "online.steps=3"]
    assert main(["train", str(path), *options]) == 0
    assert "online/label/linear" in capsys.readouterr().err
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(Path(settings["run_dir"]) / "tensorboard"))
    events.Reload()
    shown = {event.step: event.value for event in events.Scalars("online/label/linear")}
    written = {r["step"]: r["online/label/linear"] for r in read_metrics(settings["run_dir"]) if "time/online_s" in r}
    assert shown == pytest.approx(written)
    assert {0, 4} <= set(shown)
    assert main(["train", str(path), *options, "online.every=3", "train.steps=5"]) == 0  # free to change
    error = error_of(["train", str(path), *options, "train.steps=6", "online.labels=[word]"], capsys)
    assert "online.labels" in error
