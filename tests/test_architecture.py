"""The house's rules as tests: dependencies point one way, each outside library has one home, no file grows too long."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = (
    (
        "jepa.types", "jepa.features", "jepa.config", "jepa.schedules", "jepa.distributed", "jepa.logging",
        "jepa.files", "jepa.tensorfiles", "jepa.rendezvous", "jepa.stopping", "jepa.precision",
    ),
    ("jepa.models", "jepa.sharding", "jepa.masks"),
    ("jepa.data", "jepa.envs", "jepa.objectives", "jepa.planning"),
    (
        "jepa.checkpoint", "jepa.optim", "jepa.monitor", "jepa.session", "jepa.watch", "jepa.train", "jepa.load",
        "jepa.pretrained", "jepa.export", "jepa.inputs", "jepa.windows", "jepa.feed", "jepa.forward", "jepa.job",
        "jepa.encode", "jepa.parts", "jepa.streaming", "jepa.search",
        "jepa.compiling", "jepa.throughput", "jepa.profiling", "jepa.world_model", "jepa.settling", "jepa.collapse",
        "jepa.sharded_checkpoint", "jepa.peers", "jepa.frozen_model", "jepa.decoding",
        "jepa.observer", "jepa.predictive", "jepa.predict", "jepa.surprise", "jepa.surprise_curve",
    ),
    ("evals",),
    ("app",),
)
HOMES = {
    "webdataset": "jepa/data/", "gymnasium": "jepa/envs/", "h5py": "jepa/data/trajectories/",
    "decord": "jepa/data/", "torchcodec": "jepa/data/", "av": "jepa/data/", "submitit": "app/",
    "timm": "jepa/models/timm_encoder.py", "transformers": "jepa/export/", "onnx": "jepa/export/",
    "huggingface_hub": "jepa/pretrained/download.py", "faiss": "jepa/search.py",
    "pyarrow": ("jepa/features/", "jepa/data/trajectories/"),
    "sklearn": "evals/probes/sklearn_bridge.py", "tensorboard": "jepa/logging.py",
    "torch.utils.tensorboard": "jepa/logging.py",
}  # fmt: skip
FILES = sorted(path for top in ("jepa", "evals", "app") for path in (ROOT / top).rglob("*.py"))


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def layer_of(module: str) -> int | None:
    for level, names in enumerate(LAYERS):
        if any(module == name or module.startswith(f"{name}.") for name in names):
            return level
    return None


def imported(tree: ast.AST) -> list[str]:
    modules = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            modules.append(node.module or "")
    return modules


def layer_errors(module: str, tree: ast.AST) -> list[str]:
    own = layer_of(module)
    found = [(other, layer_of(other)) for other in imported(tree)]
    return [f"{module} imports {other}" for other, level in found if None not in (own, level) and level > own]


def home_errors(where: str, tree: ast.AST) -> list[str]:
    errors = []
    for module in imported(tree):
        homes = [home for name, home in HOMES.items() if module == name or module.startswith(f"{name}.")]
        errors += [f"{where} imports {module}, whose home is {home}" for home in homes if not where.startswith(home)]
    return errors


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_file_keeps_the_rules(path: Path) -> None:
    tree, where = ast.parse(path.read_text()), path.relative_to(ROOT).as_posix()
    module = module_name(path)
    assert layer_errors(module, tree) == []
    assert home_errors(where, tree) == []
    assert module in ("jepa", "app", "evals") or layer_of(module) is not None, f"{module} has no layer"
    assert len(path.read_text().splitlines()) <= 300
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 60, f"{node.name} is longer than 60 lines"
            assert node.args.kwarg is None or not module.startswith("jepa.models"), f"{node.name} takes **kwargs"
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"line {node.lineno} catches everything"
            assert getattr(node.type, "id", "") != "Exception", f"line {node.lineno} catches Exception"


def test_the_rules_see_a_breach() -> None:
    assert layer_errors("jepa.models.encoder", ast.parse("from jepa.train import fit")) != []
    assert layer_errors("jepa.train", ast.parse("from jepa.models.encoder import Encoder")) == []
    assert home_errors("jepa/encode.py", ast.parse("import sklearn.metrics")) != []
    assert home_errors("jepa/data/decord_reader.py", ast.parse("import decord")) == []
