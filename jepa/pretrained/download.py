"""Published checkpoints on the disk: downloaded once into a cache, resumed, checked, safe for several processes.

Layout: ``CACHE/NAME/FILE``, and ``CACHE/OWNER--NAME/`` for a repository of the Hugging Face hub. A file that the user
puts there is as good as a downloaded one. ``CACHE`` is ``$JEPA_CACHE``, or ``jepa`` in ``$XDG_CACHE_HOME``, or
``~/.cache/jepa``. The transport is ``huggingface_hub``, which is imported only to download.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from pathlib import Path

from jepa.files import cache_folder
from jepa.pretrained.zoo import PublishedModel
from jepa.tensorfiles import CheckpointError

logger = logging.getLogger(__name__)
_TRUE = ("1", "true", "yes", "on")


def cache_path(model: PublishedModel, cache_dir: str | Path | None = None) -> Path:
    """Where the model lies or will lie: a file, or for a hub repository a folder."""
    folder = cache_folder(cache_dir) / model.name.replace("/", "--")
    return folder if model.url is None else folder / model.url.rpartition("/")[2]


def is_cached(model: PublishedModel, cache_dir: str | Path | None = None) -> bool:
    """Whether the model is there, whole as far as sizes tell (``cached_file`` also checks sums)."""
    path = cache_path(model, cache_dir)
    if model.url is None:
        return _missing(path) == []
    return path.is_file() and model.size_bytes in (None, path.stat().st_size)


def cached_file(model: PublishedModel, cache_dir: str | Path | None = None) -> Path:
    """The model's file (of a hub repository: the folder), downloaded first if it is not in the cache.

    Shows a progress bar, continues a download that was cut off, and checks size and SHA-256 where they are known.
    With ``JEPA_OFFLINE=1`` or ``HF_HUB_OFFLINE=1`` nothing is downloaded. Raises ``CheckpointError`` (a
    ``ValueError``) that names the address, the file, and the folder to put it in.
    """
    path = cache_path(model, cache_dir)
    if is_cached(model, cache_dir):
        return _checked(model, path)
    if model.url is not None and path.is_file():
        raise CheckpointError(
            f"{path} has {path.stat().st_size:,} bytes, but {model.name} has {model.size_bytes:,}: it is no complete "
            f"copy of {model.url}; remove it, then it is downloaded again"
        )
    for variable in ("JEPA_OFFLINE", "HF_HUB_OFFLINE"):
        if os.environ.get(variable, "").lower() in _TRUE:
            raise CheckpointError(f"{model.name} is not in the cache and {variable} is set. {_by_hand(model, path)}")
    from huggingface_hub.errors import HTTPError
    from huggingface_hub.utils import WeakFileLock

    folder = path if model.url is None else path.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(folder / ".lock"):
            if not is_cached(model, cache_dir):  # else another process has just brought it
                logger.info("downloading %s to %s", model.url or model.hub_repo, folder)
                if model.url is None:
                    _fetch_repository(model, path)
                else:
                    _fetch_url(model, model.url, path)
    except (OSError, HTTPError) as error:  # transport errors of the library are HTTPErrors, the others OSErrors
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(
            f"{model.name} could not be downloaded ({reason}); try again, a part that has arrived is kept. "
            f"{_by_hand(model, path)}"
        ) from error
    return _checked(model, path)


def _by_hand(model: PublishedModel, path: Path) -> str:
    if model.url is not None:
        return f"Without a network: download {model.url} elsewhere and put the file {path.name} into {path.parent}"
    return (
        f"Without a network: download config.json and every .safetensors file of https://huggingface.co/"
        f"{model.hub_repo} elsewhere and put them into {path}"
    )


# ---- one file --------------------------------------------------------------------------------------------------------


def _fetch_url(model: PublishedModel, url: str, path: Path) -> None:
    """Download into a part file named after the server's version of the file, check it, then rename it.

    A part of another version is thrown away: gluing two versions together would give a file that is neither.
    """
    from huggingface_hub import get_hf_file_metadata
    from huggingface_hub.file_download import http_get

    remote = get_hf_file_metadata(url, token=False)
    if None not in (remote.size, model.size_bytes) and remote.size != model.size_bytes:
        raise CheckpointError(
            f"{url} has {remote.size:,} bytes, but {model.name} was published with {model.size_bytes:,}: the file has "
            f"changed at its source and is not downloaded. {_by_hand(model, path)}"
        )
    version = hashlib.sha256(f"{remote.etag} {remote.size}".encode()).hexdigest()[:8]
    part = path.with_name(f"{path.name}.{version}.part")
    for other in set(path.parent.glob(f"{path.name}.*.part")) - {part}:
        other.unlink()
    done = part.stat().st_size if part.exists() else 0
    if remote.size is not None and done > remote.size:
        part.unlink()
        done = 0
    _check_space(path.parent, (remote.size or 0) - done)
    with part.open("ab") as file:
        http_get(url, file, resume_size=done, expected_size=remote.size, displayed_filename=path.name)
        file.flush()
        os.fsync(file.fileno())
    _check_sum(model, part, downloaded=True)
    os.replace(part, path)
    _mark(model, path)


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise CheckpointError(
            f"{folder} has {free / 2**30:.1f} GiB free, the download needs {needed / 2**30:.1f} GiB; free space, or "
            "set JEPA_CACHE to a folder on another disk"
        )


def _check_sum(model: PublishedModel, path: Path, downloaded: bool = False) -> None:
    """Compare with the known SHA-256. A wrong download is deleted, a wrong file of the user's is not."""
    if model.sha256 is None:
        return
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found == model.sha256:
        return
    wrong = f"SHA-256 {found}, but {model.name} has {model.sha256}"
    if downloaded:
        path.unlink()
        raise CheckpointError(f"the download of {model.url} has {wrong}; the file was deleted, try again")
    raise CheckpointError(f"{path} has {wrong}; it is damaged or another file: remove it, then it is downloaded again")


def _checked(model: PublishedModel, path: Path) -> Path:
    """``path``, after its sum was compared once; a note beside it saves reading gigabytes at every start."""
    if model.sha256 is not None and not _is_marked(model, path):
        _check_sum(model, path)
        _mark(model, path)
    return path


def _note(model: PublishedModel, path: Path) -> tuple[Path, str]:
    stat = path.stat()
    return path.with_name(f".{path.name}.checked"), f"{model.sha256} {stat.st_size} {stat.st_mtime_ns}"


def _is_marked(model: PublishedModel, path: Path) -> bool:
    note, text = _note(model, path)
    return note.exists() and note.read_text() == text


def _mark(model: PublishedModel, path: Path) -> None:
    note, text = _note(model, path)
    if model.sha256 is not None and os.access(path.parent, os.W_OK):  # a shared cache may be read-only
        note.write_text(text)


# ---- a repository of the hub -----------------------------------------------------------------------------------------


def _fetch_repository(model: PublishedModel, folder: Path) -> None:
    """The library resumes, checks and renames file by file; without a network it returns the folder as it is."""
    from huggingface_hub import snapshot_download

    assert model.hub_repo is not None
    snapshot_download(model.hub_repo, local_dir=folder, allow_patterns=["*.json", "*.safetensors"])
    lacking = _missing(folder)
    if lacking:
        raise CheckpointError(
            f"{model.name} did not arrive whole, {', '.join(lacking)} missing: try again. {_by_hand(model, folder)}"
        )


def _missing(folder: Path) -> list[str]:
    """The files of a transformers folder that are not there: ``config.json``, the weights or any of their shards."""
    wanted = ["config.json", "model.safetensors"]
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            wanted[1:] = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError):
            return [index.name]  # cut off, or something else: as good as not there
    return [name for name in wanted if not (folder / name).is_file()]
