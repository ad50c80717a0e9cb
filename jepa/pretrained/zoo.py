"""The published JEPA checkpoints: where each lies, how it is built, and the clip that it was trained on.

The facts come from the papers, and from the READMEs, configs and torch-hub entries of the three official repositories
(facebookresearch/ijepa, jepa and vjepa2), read in 2026. The publishers give no checksums: a ``sha256`` here was
measured by at least two parties who do not know each other; where that is not so it is None.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

from jepa.config import suggest
from jepa.models.sizes import SIZES
from jepa.types import ClipConfig

Family = Literal["ijepa", "vjepa", "vjepa2", "vjepa2_ac", "vjepa2_1", "probe", "transformers"]
_FILES = "https://dl.fbaipublicfiles.com"
_CODE = "https://github.com/facebookresearch"
_NON_COMMERCIAL, _MIT, _APACHE = "CC BY-NC 4.0", "MIT", "Apache-2.0"
_MILLIONS = {"vit_base": 86.8, "vit_large": 303.9, "vit_huge": 631.6, "vit_giant": 1012.2, "vit_gigantic": 1845.2}
_DATASETS = {
    "k400": ("Kinetics-400", 400), "ssv2": ("Something-Something v2", 174), "in1k": ("ImageNet-1K", 1000),
    "places": ("Places205", 205), "inat": ("iNaturalist 2021", 10000), "diving48": ("Diving48", 48),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class PublishedModel:
    """One published checkpoint.

    ``architecture``: the keys that ``jepa.load_pretrained`` takes. ``clip``: the model's own preprocessing, as its
    official single-view evaluation does it. Either ``url`` of a single file, or ``hub_repo``, a repository on the
    Hugging Face hub. ``parameters``: of the encoder; of a probe, of the probe itself. ``weights``: the key of the file
    that holds the averaged encoder. ``encoder`` and ``layers`` (probes): the model whose tokens the probe reads, and
    the blocks that they come from, side by side along the token axis (None: the last block).
    """

    name: str
    family: Family
    architecture: dict[str, Any]
    clip: ClipConfig
    parameters: int
    licence: str
    source: str
    repository: str
    url: str | None = None
    hub_repo: str | None = None
    size_bytes: int | None = None
    sha256: str | None = None
    weights: str | None = None
    encoder: str | None = None
    layers: tuple[int, ...] | None = None
    notes: str = ""

    def __repr__(self) -> str:
        return (
            f"<{self.name}: {self.parameters / 1e6:.1f} M parameters, {self.resolution} px, {self.frames} frames, "
            f"{self.source}, {self.licence}>"
        )

    @property
    def resolution(self) -> int:
        """Side of the clip in pixels."""
        return self.clip.crop_size

    @property
    def frames(self) -> int:
        """Frames of the clip; 1 for an image model."""
        return self.clip.num_frames


def list_models(family: str | None = None) -> list[PublishedModel]:
    """Every published checkpoint, or those of one family. Raises ``ValueError`` for a family that does not exist."""
    if family is not None and family not in get_args(Family):
        raise ValueError(f"unknown family {family!r}{suggest(family, get_args(Family))}")
    return [model for model in MODELS.values() if family in (None, model.family)]


def find_model(name: str) -> PublishedModel:
    """The published checkpoint of this name. Raises ``ValueError`` with the nearest name."""
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}{suggest(name, MODELS)} (`jepa models` lists them)")
    return MODELS[name]


def _clip(side: int, num_frames: int, **choice: Any) -> ClipConfig:
    """The official evaluations bring the short side to 256/224 of the crop, rounded down, and cut out the centre."""
    return ClipConfig(num_frames=num_frames, crop_size=side, short_side=side * 256 // 224, **choice)


def _architecture(
    size: str, predictor_depth: int, predictor_heads: int, clip: ClipConfig, **rest: Any
) -> dict[str, Any]:
    embed_dim, depth, num_heads, mlp_ratio = SIZES[size]
    return {
        "embed_dim": embed_dim, "depth": depth, "num_heads": num_heads, "mlp_ratio": mlp_ratio,
        "predictor_embed_dim": 384, "predictor_depth": predictor_depth, "predictor_num_heads": predictor_heads,
        "patch_size": 16, "img_size": clip.crop_size, "num_frames": clip.num_frames, "tubelet_size": 2, **rest,
    }  # fmt: skip


def _ijepa() -> Iterator[PublishedModel]:
    rows = (
        ("ijepa_vit_huge_14_in1k", "vit_huge", 14, 224, 12, 630.8, "IN1K-vit.h.14-300e.pth.tar"),
        ("ijepa_vit_huge_16_448_in1k", "vit_huge", 16, 448, 12, 631.7, "IN1K-vit.h.16-448px-300e.pth.tar"),
        ("ijepa_vit_huge_14_in22k", "vit_huge", 14, 224, 12, 630.8, "IN22K-vit.h.14-900e.pth.tar"),
        ("ijepa_vit_giant_16_in22k", "vit_giant", 16, 224, 16, 1011.4, "IN22K-vit.g.16-600e.pth.tar"),
    )
    for name, size, patch, side, depth, millions, file in rows:
        clip = _clip(side, 1)
        heads = {"num_heads": 16, "patch_size": patch, "tubelet_size": 1}  # also the giant: it has 22 in V-JEPA 2
        yield PublishedModel(
            name=name, family="ijepa", architecture=_architecture(size, depth, 16, clip, **heads), clip=clip,
            parameters=round(millions * 1e6), licence=_NON_COMMERCIAL, url=f"{_FILES}/ijepa/{file}",
            weights="target_encoder", source="arXiv 2301.08243", repository=f"{_CODE}/ijepa",
            notes="short_side not verified: the repository has no evaluation code, the usual 256/224 is taken",
        )  # fmt: skip


def _vjepa() -> Iterator[PublishedModel]:
    for name, size, side, folder in (
        ("vjepa_vit_large", "vit_large", 224, "vitl16"),
        ("vjepa_vit_huge", "vit_huge", 224, "vith16"),
        ("vjepa_vit_huge_384", "vit_huge", 384, "vith16-384"),
    ):
        clip = _clip(side, 16, frame_step=4)
        yield PublishedModel(
            name=name, family="vjepa", clip=clip,
            architecture=_architecture(size, 12, 16, clip, uniform_power=True, num_mask_tokens=2),
            parameters=round(_MILLIONS[size] * 1e6), licence=_NON_COMMERCIAL, weights="target_encoder",
            url=f"{_FILES}/jepa/{folder}/{folder}.pth.tar", source="arXiv 2404.08471", repository=f"{_CODE}/jepa",
        )  # fmt: skip


def _vjepa_probes() -> Iterator[PublishedModel]:
    """One cross-attention block and a linear layer, for each of the three encoders and five datasets."""
    averaged = {"k400": "8 clips x 3 views", "ssv2": "2 clips x 3 views"}
    for model in list(_vjepa()):
        assert model.url is not None
        for short, (dataset, classes) in list(_DATASETS.items())[:5]:
            views = averaged.get(short)
            seen = f"the published accuracy averages {views}" if views else "an image is shown as 16 equal frames"
            yield _probe(
                model, short, depth=1, clip=model.clip, url=f"{model.url.rpartition('/')[0]}/{short}-probe.pth.tar",
                num_classes=classes, notes=f"{dataset}; {seen}",
            )  # fmt: skip


def _probe(
    model: PublishedModel, short: str, *, depth: int, clip: ClipConfig, url: str, notes: str, queries: int = 1,
    layers: tuple[int, ...] | None = None, **rest: Any,
) -> PublishedModel:  # fmt: skip
    width, classes = model.architecture["embed_dim"], rest.get("num_classes", 0)
    # A self-attention block has 12 D^2 weights; the cross-attention one has 11 (V-JEPA's stale projection left out).
    blocks = (12 * (depth - 1) + 11) * width**2 + (13 * (depth - 1) + 12) * width
    return PublishedModel(
        name=f"{model.name}_{short}_probe", family="probe", clip=clip, url=url, notes=notes, layers=layers,
        architecture={"embed_dim": width, "num_heads": 16, "depth": depth, **rest}, encoder=model.name,
        parameters=blocks + queries * width + classes * (width + 1),
        licence=model.licence, source=model.source, repository=model.repository,
    )  # fmt: skip


_VJEPA2_ROWS = (
    ("vjepa2_vit_large", "vit_large", 256, "vitl"),
    ("vjepa2_vit_huge", "vit_huge", 256, "vith"),
    ("vjepa2_vit_giant", "vit_giant", 256, "vitg"),
    ("vjepa2_vit_giant_384", "vit_giant", 384, "vitg-384"),
)
_KNOWN: dict[str, tuple[int | None, str]] = {  # bytes and SHA-256
    "vitl": (5127726842, "5346856ec9df69487fe72a25bf2632aaa8112df33fb67708e3f7374edc1f7012"),
    "vjepa2_1_vitb_dist_vitG_384": (1664223428, "848a77c33cc9e6649ed2119c9bea1e2c569bcdab9539ff3e7c02ccc2959ddf4d"),
    "vjepa2_1_vitl_dist_vitG_384": (5151198524, "7ea9b7cb4a75d10644a8a8d42cff9e177b10dca8f02173f0eaf2b0bed82838c6"),
    "vjepa2_1_vitg_384": (None, "b417628f1618c8bd52c0f419800b802f65794288c6ef2ff85c1341a1ae587cba"),
}


def _vjepa2_architecture(size: str, clip: ClipConfig) -> dict[str, Any]:
    return _architecture(size, 12, 12, clip, num_mask_tokens=10, use_rope=True, use_silu=False, wide_silu=True)


def _vjepa2() -> Iterator[PublishedModel]:
    for name, size, side, file in _VJEPA2_ROWS:
        clip, (size_bytes, sha256) = _clip(side, 64, fps=4.0), _KNOWN.get(file, (None, None))
        yield PublishedModel(
            name=name, family="vjepa2", architecture=_vjepa2_architecture(size, clip), clip=clip, licence=_MIT,
            parameters=round(_MILLIONS[size] * 1e6), url=f"{_FILES}/vjepa2/{file}.pt", size_bytes=size_bytes,
            sha256=sha256, weights="target_encoder", source="arXiv 2506.09985", repository=f"{_CODE}/vjepa2",
        )  # fmt: skip


def _vjepa2_probes() -> Iterator[PublishedModel]:
    """Three self-attention blocks and one cross-attention block (arXiv 2506.09985, section 5)."""
    models = {model.name: model for model in _vjepa2()}
    for name, side, ssv2, ssv2_clip, diving48, layers, ek100 in (
        ("vjepa2_vit_large", 256, "ssv2-vitl-16x2x3", (16, 4), "diving48-vitl-256", (17, 19, 21, 23), "ek100-vitl-256"),
        ("vjepa2_vit_giant_384", 384, "ssv2-vitg-384-64x2x3", (64, 2), "diving48-vitg-384-32x4x3", (24, 29, 34, 39),
         "ek100-vitg-384"),
    ):  # fmt: skip
        model, folder = models[name], f"{_FILES}/vjepa2/evals"
        yield _probe(
            model, "ssv2", depth=4, clip=_clip(side, ssv2_clip[0], frame_step=ssv2_clip[1]), num_classes=174,
            url=f"{folder}/{ssv2}.pt",
            notes="Something-Something v2; the published accuracy averages 2 clips x 3 views",
        )  # fmt: skip
        yield _probe(
            model, "diving48", depth=4, clip=_clip(side, 32, frame_step=2), num_classes=48, layers=layers,
            url=f"{folder}/{diving48}.pt", notes="Diving48; the published accuracy averages 4 clips x 3 views",
        )  # fmt: skip
        yield _probe(
            model, "ek100", depth=4, clip=_clip(side, 32, fps=8.0), queries=3, url=f"{folder}/{ek100}.pt",
            notes="EPIC-KITCHENS-100 anticipation; reads the encoder's tokens and the predictor's for 1 s ahead. The "
            "sizes of the verb, noun and action classifiers are in the file alone and not counted in the parameters",
        )  # fmt: skip


def _vjepa2_ac() -> Iterator[PublishedModel]:
    clip = ClipConfig(num_frames=8, fps=4.0, crop_size=256)
    architecture = _architecture("vit_giant", 24, 16, clip, action_embed_dim=7, use_extrinsics=False, use_rope=True)
    yield PublishedModel(
        name="vjepa2_ac_vit_giant", family="vjepa2_ac", architecture=architecture | {"predictor_embed_dim": 1024},
        clip=clip, parameters=round(_MILLIONS["vit_giant"] * 1e6), licence=_MIT, weights="target_encoder",
        url=f"{_FILES}/vjepa2/vjepa2-ac-vitg.pt", source="arXiv 2506.09985", repository=f"{_CODE}/vjepa2",
        notes="action-conditioned predictor of 305.2 M parameters; each frame is encoded alone, shown twice",
    )  # fmt: skip


def _vjepa2_1() -> Iterator[PublishedModel]:
    for name, size, file, levels, layers in (
        ("vjepa2_1_vit_base_384", "vit_base", "vjepa2_1_vitb_dist_vitG_384", 1, [2, 5, 8, 11]),
        ("vjepa2_1_vit_large_384", "vit_large", "vjepa2_1_vitl_dist_vitG_384", 1, [5, 11, 17, 23]),
        ("vjepa2_1_vit_giant_384", "vit_giant", "vjepa2_1_vitg_384", 4, [9, 19, 29, 39]),
        ("vjepa2_1_vit_gigantic_384", "vit_gigantic", "vjepa2_1_vitG_384", 4, [11, 23, 37, 47]),
    ):
        clip, (size_bytes, sha256) = _clip(384, 64, fps=4.0), _KNOWN.get(file, (None, None))
        distilled = levels == 1
        rest = {"teacher_embed_dim": 1664} if distilled else {}  # the predictor's outputs have the teacher's width
        architecture = _architecture(
            size, 12 if distilled else 24, 12, clip, num_mask_tokens=8, use_rope=True, interpolate_rope=True,
            modality_embedding=True, n_output_distillation=levels, hierarchical_layers=layers, **rest,
        )  # fmt: skip
        yield PublishedModel(
            name=name, family="vjepa2_1", architecture=architecture, clip=clip,
            parameters=round(_MILLIONS[size] * 1e6), licence=_MIT, url=f"{_FILES}/vjepa2/{file}.pt",
            size_bytes=size_bytes, sha256=sha256, weights="ema_encoder" if distilled else "target_encoder",
            source="arXiv 2603.14482", repository=f"{_CODE}/vjepa2",
            notes="distilled from ViT-G: the predictor predicts ViT-G's last block" if distilled else "",
        )  # fmt: skip


def _transformers() -> Iterator[PublishedModel]:
    """The V-JEPA 2 models of the Hugging Face hub (transformers' VJEPA2Model); there is none of 2.1 yet."""
    for repo, size, side, clip_choice, probe, licence in (
        ("vjepa2-vitl-fpc64-256", "vit_large", 256, (64, None), None, _MIT),
        ("vjepa2-vith-fpc64-256", "vit_huge", 256, (64, None), None, _APACHE),
        ("vjepa2-vitg-fpc64-256", "vit_giant", 256, (64, None), None, _APACHE),
        ("vjepa2-vitg-fpc64-384", "vit_giant", 384, (64, None), None, _APACHE),
        ("vjepa2-vitl-fpc16-256-ssv2", "vit_large", 256, (16, 4), "ssv2", _MIT),
        ("vjepa2-vitg-fpc64-384-ssv2", "vit_giant", 384, (64, 2), "ssv2", "not verified"),
        ("vjepa2-vitl-fpc32-256-diving48", "vit_large", 256, (32, 2), "diving48", "not verified"),
        ("vjepa2-vitg-fpc32-384-diving48", "vit_giant", 384, (32, 2), "diving48", "not verified"),
    ):
        frames, step = clip_choice
        clip = _clip(side, frames, fps=4.0) if step is None else _clip(side, frames, frame_step=step)
        dataset, classes = _DATASETS[probe] if probe else ("", None)
        last = "; the pooler reads the last block alone, the original probe four blocks" if probe == "diving48" else ""
        yield PublishedModel(
            name=f"facebook/{repo}", family="transformers", hub_repo=f"facebook/{repo}", clip=clip,
            architecture=_vjepa2_architecture(size, clip) | ({"num_classes": classes} if classes else {}),
            parameters=round(_MILLIONS[size] * 1e6), licence=licence, source="arXiv 2506.09985",
            repository=f"{_CODE}/vjepa2",
            notes=f"with a classifier for {dataset}{last}" if probe else "",
        )  # fmt: skip


def _every_row() -> Iterator[PublishedModel]:
    for rows in (_ijepa, _vjepa, _vjepa_probes, _vjepa2, _vjepa2_probes, _vjepa2_ac, _vjepa2_1, _transformers):
        yield from rows()


MODELS: dict[str, PublishedModel] = {model.name: model for model in _every_row()}
