"""Features in memory and on disk: pooling, maps, layers, and every format giving back what went in."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch import Tensor, nn

from jepa.features import Features, open_features, store, tubelet_times
from jepa.types import TokenGrid

GRID = TokenGrid(3, 2, 2)
FORMATS = ("parquet", "safetensors", "npz")


def example(rows: int = 5, layers: tuple[int, ...] = ()) -> Features:
    torch.manual_seed(0)
    start, end = tubelet_times([0.5 * k for k in range(rows)], [0.5 * k + 1.5 for k in range(rows)], GRID)
    names = tuple(f"films/ä {k // 2}, 'b'.mp4" for k in range(rows))
    metadata = {"model": "runs/demo", "clip": {"num_frames": 6, "fps": 4.0}}
    return Features(torch.randn(rows, 12, 8), GRID, start, end, names, metadata, layers)


class Probe(nn.Module):
    """Two queries: the first token and the sum."""

    def pooler(self, tokens: Tensor) -> Tensor:
        return torch.stack((tokens[:, 0], tokens.sum(1)), dim=1)


def test_pooled_maps_and_numpy() -> None:
    tokens = torch.arange(24.0).view(1, 12, 2)
    features = Features(tokens, GRID)
    assert torch.equal(features.pooled(), tokens.mean(1))
    assert features.maps().shape == (1, 3, 2, 2, 2)
    assert torch.equal(features.maps()[0, 2, 1, 0], tokens[0, 10])
    assert features.numpy().dtype == features.to_numpy().dtype == "float32"
    attentive = features.pooled(Probe())
    assert torch.equal(attentive, torch.cat((tokens[:, 0], tokens.sum(1)), dim=1))
    with pytest.raises(ValueError, match="Linear has neither a 'pooler' nor"):
        features.pooled(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"tokens must be \[B, 12, D\].*not \[1, 11, 2\]"):
        Features(tokens[:, 1:], GRID)


def test_a_layer_is_taken_out_by_its_name() -> None:
    features = example(layers=(2, -1))
    assert torch.equal(features.layer(2).tokens, features.tokens[..., :4])
    assert torch.equal(features.layer(-1).pooled(), features.tokens[..., 4:].mean(1))
    assert features.layer(-1).layers == (-1,)
    uneven = Features(features.tokens, GRID, layers=(2, -1), widths=(3, 5))
    assert torch.equal(uneven.layer(-1).tokens, features.tokens[..., 3:])
    with pytest.raises(ValueError, match=r"layers of widths \[3, 4\] do not make 8"):
        Features(features.tokens, GRID, layers=(2, -1), widths=(3, 4))
    with pytest.raises(ValueError, match=r"layer 1 is not among the encoded layers \[2, -1\]"):
        features.layer(1)


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("block_rows", [2, 100])
def test_every_format_gives_back_what_went_in(
    suffix: str, block_rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "BLOCK_BYTES", block_rows * 12 * 8 * 4)
    features, path = example(layers=(0, 1)), tmp_path / "new" / f"f.{suffix}"
    features.save(path)
    again = Features.load(path)
    assert torch.equal(again.tokens, features.tokens)
    assert (again.grid, again.sources, again.layers, again.pool) == (GRID, features.sources, (0, 1), "none")
    torch.testing.assert_close(again.start_s, features.start_s, rtol=0, atol=1e-12)
    torch.testing.assert_close(again.end_s, features.end_s, rtol=0, atol=1e-12)
    assert again.metadata["clip"] == {"num_frames": 6, "fps": 4.0}
    assert again.metadata["shape"] == [12, 8]
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # nothing temporary is left
    table = open_features(path)
    assert table.sources == list(features.sources)
    assert table.start_s.tolist() == [0.0, 0.5, 1.0, 1.5, 2.0]
    assert table.end_s.tolist() == [1.5, 2.0, 2.5, 3.0, 3.5]
    np.testing.assert_allclose(table.vectors, features.pooled().numpy(), atol=1e-6)
    assert table.vectors.dtype == np.float32
    first = path.read_bytes()
    features.save(path)
    assert path.read_bytes() == first  # equal features make equal files


@pytest.mark.parametrize("suffix", FORMATS)
def test_pooled_features_are_one_vector_per_row(suffix: str, tmp_path: Path) -> None:
    full = example()
    pooled = Features(full.pooled()[:, None], GRID, full.start_s, full.end_s, full.sources, pool="mean")
    pooled.save(tmp_path / f"f.{suffix}")
    table, again = open_features(tmp_path / f"f.{suffix}"), Features.load(tmp_path / f"f.{suffix}")
    assert table.metadata["shape"] == [8]
    assert np.array_equal(table.vectors, full.pooled().numpy())
    assert torch.equal(again.pooled(), full.pooled())
    assert isinstance(table.vectors, np.memmap) == (suffix != "parquet")
    with pytest.raises(ValueError, match="pooled"):
        again.maps()
    with pytest.raises(ValueError, match="pooled already"):
        again.pooled(Probe())


def test_other_readers_understand_the_files(tmp_path: Path) -> None:
    features = example()
    features.save(tmp_path / "f.safetensors")
    features.save(tmp_path / "f.npz")
    tensors = load_file(tmp_path / "f.safetensors")
    assert np.array_equal(tensors["feature"], features.numpy())
    offsets = tensors["source_offsets"]
    assert bytes(tensors["source"][offsets[2] : offsets[3]]).decode() == features.sources[2]
    with np.load(tmp_path / "f.npz") as archive:
        assert np.array_equal(archive["feature"], features.numpy())
        assert archive["source"].tolist() == list(features.sources)


@pytest.mark.parametrize("suffix", FORMATS)
def test_damaged_and_foreign_files_are_named(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"f.{suffix}"
    with pytest.raises(ValueError, match=r"f\.\w+ does not exist"):
        open_features(path)
    example(50).save(path)
    whole = path.read_bytes()
    for damaged in (b"", b"no features here" * 10, whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"f\.{suffix} cannot be read as a feature file"):
            open_features(path)


def test_a_file_without_our_metadata_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros(3))
    with pytest.raises(ValueError, match=r"a\.npz .*was not written by this toolkit"):
        open_features(tmp_path / "a.npz")


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "full").touch()
    with pytest.raises(ValueError, match=r"full/x.npz cannot be written: File exists"):
        example().save(tmp_path / "full" / "x.npz")
    with pytest.raises(ValueError, match=r"must end in \.parquet, \.safetensors or \.npz, did you mean '\.parquet'"):
        example().save(tmp_path / "f.parqet")
    features = Features(torch.zeros(1, 12, 2), GRID)
    with pytest.raises(ValueError, match="need start_s, end_s and one source per clip"):
        features.save(tmp_path / "f.npz")
