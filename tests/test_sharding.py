"""One, two and four processes, with copies of the model and with shards of it, compute the same.

All that needs several processes happens in ``together.py``, which is started once.
"""

from __future__ import annotations

import json
import pickle
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from slurm.cluster import free_ports
from test_distributed import ROOT, outputs
from together import REGULARIZERS, copy_at, terms, train

import jepa
from app.cli import main
from jepa.checkpoint import find_checkpoint, latest_checkpoint, list_checkpoints, load_checkpoint, load_encoder, prune
from jepa.load import load
from jepa.logging import read_metrics
from jepa.sharded_checkpoint import ShardedTensors
from jepa.tensorfiles import CheckpointError

# fp32 sums in another order: relative to weights and losses of order 1, after four steps of learning rate 0.3
TOLERANCE = 2e-6
FROM_CHECKPOINTS = ("ddp2 from fsdp4", "fsdp2 from fsdp4", "fsdp2 from one")
LAYOUTS = ("ddp2", "ddp4", "fsdp2", "fsdp4", *FROM_CHECKPOINTS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("together")
    train(path, "one")
    train(path, "one bf16", {"train": {"precision": "bf16"}})
    return path


@pytest.fixture(scope="module")
def found(folder: Path) -> list[dict[str, Any]]:
    """What each of the four processes saw; the runs are in ``folder``."""
    script = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'tests')!r}); from pathlib import Path; "
        f"import torch, together; torch.set_num_threads(1); together.main(Path({str(folder)!r}), {free_ports(2)})"
    )
    return [json.loads(out.partition("result ")[2].splitlines()[0]) for out in outputs(script, 4)]


def logged(run_dir: Path, key: str) -> dict[int, dict[str, float]]:
    """Records with ``key`` by step, without speeds and what differs from process to process."""
    return {
        record["step"]: {
            name: value for name, value in record.items()
            if isinstance(value, float) and not name.startswith(("time/", "memory/"))
        }
        for record in read_metrics(run_dir) if key in record
    }  # fmt: skip


def assert_close(a: Any, b: Any, tolerance: float = TOLERANCE) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance * 10, atol=tolerance)


@pytest.mark.parametrize("name", LAYOUTS)
def test_losses_weights_and_state_are_those_of_one_process(
    folder: Path, found: list[dict[str, Any]], name: str
) -> None:
    first = 3 if name in FROM_CHECKPOINTS else 1
    losses, expected = logged(folder / name, "loss"), logged(folder / "one", "loss")
    assert sorted(losses) == list(range(first, 5))
    for step, values in losses.items():
        assert values.keys() == expected[step].keys()
        for metric, value in values.items():
            assert value == pytest.approx(expected[step][metric], rel=1e-5, abs=TOLERANCE), (metric, step)
    assert all(values["grad_norm"] > 0.5 for values in expected.values()), "clipping must have bitten"
    new, old = load_checkpoint(folder / name), load_checkpoint(folder / "one")
    assert_close(new["objective"], old["objective"])
    assert_close(new["optimizer"]["state"], old["optimizer"]["state"])
    assert new["optimizer"]["param_groups"] == old["optimizer"]["param_groups"]
    assert new["loader"] == old["loader"]
    moved = load_checkpoint(folder / "one" / "checkpoints" / "step_00000002.pt")["objective"]
    for part in ("encoder.", "target_encoder.", "predictor."):  # the tolerance is far below what a step changes
        key = next(key for key in moved if key.startswith(part) and key.endswith("fc1.weight"))
        assert (moved[key] - old["objective"][key]).abs().max() > 20 * TOLERANCE


@pytest.mark.parametrize("name", ["ddp4", "fsdp2", "fsdp4"])
def test_monitor_and_online_probes_see_the_same(folder: Path, found: list[dict[str, Any]], name: str) -> None:
    for key, steps in (("monitor/rankme", [0, 2, 4]), ("online/label/linear", [0, 4])):
        looks, expected = logged(folder / name, key), logged(folder / "one", key)
        assert sorted(looks) == sorted(expected) == steps
        for step, values in looks.items():
            assert values == pytest.approx(expected[step], rel=1e-4, abs=1e-5), (key, step)


def test_bf16_shards_follow_bf16_copies(folder: Path, found: list[dict[str, Any]]) -> None:
    """Weights travel in bf16, so norms and biases are rounded, which autocast leaves alone: 2^-8 relative."""
    curves = [logged(folder / name, "loss") for name in ("one bf16", "ddp2 bf16", "fsdp2 bf16")]
    for step in range(1, 5):
        one, ddp, fsdp = (curve[step]["loss"] for curve in curves)
        assert ddp == pytest.approx(one, rel=2e-3)
        assert fsdp == pytest.approx(one, rel=4e-3)
    state = load_checkpoint(folder / "fsdp2 bf16")
    assert {tensor.dtype for tensor in state["objective"].values()} == {torch.float32}
    assert {state["exp_avg"].dtype for state in state["optimizer"]["state"].values()} == {torch.float32}


def test_regularizers_see_the_rows_of_all_processes(found: list[dict[str, Any]]) -> None:
    expected = terms(None)
    for own in found:
        for name in REGULARIZERS:
            assert own["terms"][name] == pytest.approx(expected[name], rel=1e-4, abs=1e-6)


def test_each_process_holds_its_share(found: list[dict[str, Any]]) -> None:
    """Rows of small weights do not divide by four, so shares are not exactly a quarter; together they are the whole."""
    for part in range(2):
        own = [seen["shares"][part] for seen in found]
        assert sum(own) == pytest.approx(1.0)
        assert max(own) < 0.3


def test_accumulation_exchanges_gradients_once(found: list[dict[str, Any]]) -> None:
    """However many micro-batches. FSDP sums a block's gradient once; where there are gradients of earlier micro-batches
    it sums them when the last one's first mask family is through, and that of the second family after it."""
    ddp, fsdp = found[0]["exchanges"]["ddp"], found[0]["exchanges"]["fsdp"]
    assert ddp == [ddp[0]] * 3
    assert ddp[0] > 0
    assert fsdp == [6, 9, 9]  # two roots and three blocks; the predictor's root has a token for each family


def test_a_barrier_names_who_is_missing(found: list[dict[str, Any]]) -> None:
    host = socket.gethostname()
    assert found[0]["hosts"] == [0, 1, 2, 3]
    for rank in (0, 1, 3):
        assert found[rank]["missing"].startswith(
            f"rank {rank} waited 0 s for the others (a meeting); missing: rank 2 ({host})."
        )


def test_a_process_that_cannot_save_leaves_the_previous_checkpoint(found: list[dict[str, Any]]) -> None:
    for own in found:
        message, intact, again, _ = own["full disk"]
        assert "step_00000002.dcp could not be written: rank 1 (" in message
        assert "No space" in message
        assert (intact, again) == ([1], "step_00000003.dcp")  # and nothing half written fills the disk
    assert found[0]["full disk"][3] == ["step_00000003.dcp"]


# ---- one process and folders of shards -------------------------------------------------------------------------------


def test_one_process_continues_from_shards_and_from_their_conversion(
    folder: Path, found: list[dict[str, Any]]
) -> None:
    """As if it had never been in shards."""
    copy_at(folder, "fsdp4", "one from shards", 2)
    copy_at(folder, "fsdp4", "one from a file", 2)
    shards = folder / "one from a file" / "checkpoints" / "step_00000002.dcp"
    file = shards.with_suffix(".pt")
    assert main(["export", str(shards), str(file), "--format", "checkpoint"]) == 0
    shutil.rmtree(shards)
    expected = load_checkpoint(folder / "one")
    for name in ("one from shards", "one from a file"):
        train(folder, name)
        assert latest_checkpoint(folder / name) == folder / name / "checkpoints" / "step_00000004.pt"
        state = load_checkpoint(folder / name)
        assert_close(state["objective"], expected["objective"])
        assert_close(state["optimizer"]["state"], expected["optimizer"]["state"])
    assert main(["export", str(shards), str(file), "--format", "checkpoint"]) == 2  # there is one already


def test_shards_are_a_checkpoint_like_any_other(folder: Path, found: list[dict[str, Any]]) -> None:
    run = folder / "fsdp4"
    assert [path.name for path in list_checkpoints(run)] == ["step_00000002.dcp", "step_00000004.dcp"]
    clip = torch.randn(2, 3, 4, 32, 32)
    with torch.no_grad():
        expected = load_encoder(folder / "one")(clip)
        for path in (run, find_checkpoint(run)):
            assert_close(load(path)(clip), expected)
        assert_close(load(run, "encoder")(clip), load_encoder(folder / "one", "encoder")(clip))
    assert jepa.load_predictive(str(run)).metadata["step"] == 4
    lazy = load_checkpoint(run, mmap=True)
    assert isinstance(lazy["objective"], ShardedTensors)
    assert "state" not in lazy["optimizer"]


def test_init_from_shards_takes_the_weights(folder: Path, found: list[dict[str, Any]]) -> None:
    train(folder, "begun", {"init_from": str(folder / "fsdp4"), "train": {"steps": 1, "save_every": 1}})
    first = logged(folder / "begun", "monitor/rankme")[0]
    assert first == pytest.approx(logged(folder / "one", "monitor/rankme")[4], rel=1e-4, abs=1e-5)


def test_old_folders_go_and_half_ones_are_not_seen(
    folder: Path, found: list[dict[str, Any]], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(folder / "fsdp4", run)
    last = run / "checkpoints" / "step_00000004.dcp"
    shutil.copytree(last, run / "checkpoints" / "step_00000006.dcp")
    (run / "checkpoints" / "step_00000006.dcp" / "checkpoint.pt").unlink()
    assert latest_checkpoint(run) == last
    prune(run, keep_last=1, keep_every=None)
    assert list_checkpoints(run) == [last]
    assert not (run / "checkpoints" / "step_00000002.dcp").exists()


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("this ran",)


def test_damage_and_foreign_code_are_refused(
    folder: Path, found: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "step_00000004.dcp"
    shutil.copytree(folder / "fsdp4" / "checkpoints" / "step_00000004.dcp", path)
    shards = path / "__1_0.distcp"
    content = shards.read_bytes()
    shards.write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=r"step_00000004.dcp is damaged"):
        load_checkpoint(path)
    shards.unlink()
    with pytest.raises(CheckpointError, match=r"step_00000004.dcp is damaged"):
        load_checkpoint(path)
    (path / ".metadata").write_bytes(pickle.dumps(_Evil()))
    with pytest.raises(CheckpointError, match=r"refused: it asks for builtins.print"):
        load_checkpoint(path)
    module = "torch.distributed.checkpoint.metadata"
    for name in ("os.system", "Any"):  # what an allowed module itself imports; pickles of protocol 4 follow the dot
        index = b"".join(bytes((0x8C, len(text))) + text.encode() for text in (module, name))
        index = b"\x80\x04" + index + b"\x93."
        (path / ".metadata").write_bytes(index)
        with pytest.raises(CheckpointError, match=rf"refused: it asks for {module}.{name}"):
            load_checkpoint(path)
    (path / ".metadata").write_bytes(b"half")
    with pytest.raises(CheckpointError, match=r"its .metadata cannot be read|refused"):
        load_checkpoint(path)
    assert "this ran" not in capsys.readouterr().out
