"""The lines of Python in a model card: they run as they stand, beside the export."""

from __future__ import annotations

from jepa.export.graph import output_names
from jepa.export.source import Source
from jepa.types import ClipConfig


def snippet(source: Source, format: str, file_name: str, clip: ClipConfig) -> str:
    """Code that loads ``file_name`` and encodes one clip of black frames."""
    side = clip.crop_size
    grid = source.encoder.grid_of((source.encoder.config.in_channels, clip.num_frames, side, side))
    shape = f"[1, {grid.size}, {source.encoder.embed_dim}]"
    frames = (
        f"frames = np.zeros(({clip.num_frames}, {side}, {side}, 3), np.uint8)  # RGB frames of one clip, chosen "
        "and sized as above\n"
    )
    normalise = (
        f"values = (frames / 255 - {list(clip.mean)}) / {list(clip.std)}\n"
        "clip = values.transpose(3, 0, 1, 2)[None].astype(np.float32)  # [1, 3, frames, height, width]\n"
    )
    if format == "safetensors":
        return _safetensors(file_name, frames, shape, clip)
    if format == "transformers":
        return _transformers(source, file_name, frames, shape, clip)
    names = output_names(source)
    results = ", ".join(names)
    if format == "onnx":
        load = f'session = onnxruntime.InferenceSession("{file_name}")\n'
        call = f'{results}{"," if len(names) == 1 else ""} = session.run({names!r}, {{"clip": clip}})'.replace("'", '"')
        imports = "import numpy as np\nimport onnxruntime\n\n"
    else:
        load = f'model = torch.export.load("{file_name}").module()\n'
        call = f"{results} = model(torch.from_numpy(clip))"
        imports = "import numpy as np\nimport torch\n\n"
    return f"{imports}{load}{frames}{normalise}{call}  # tokens {shape}\n"


def _safetensors(name: str, frames: str, shape: str, clip: ClipConfig) -> str:
    rate = f", fps={clip.fps:g}" if clip.fps is not None and clip.num_frames > 1 else ""
    return (
        f'import jepa\nimport numpy as np\n\nencoder = jepa.load("{name}")\n{frames}'
        f"features = jepa.encode(frames, encoder{rate})  # or a path, a folder, ...\n"
        f"tokens = features.tokens  # {shape}\n"
    )


def _transformers(source: Source, name: str, frames: str, shape: str, clip: ClipConfig) -> str:
    model = "VJEPA2Model" if source.probe is None else "VJEPA2ForVideoClassification"
    size = ""
    if clip.fit == "stretch":
        size = f'size={{"height": {clip.crop_size}, "width": {clip.crop_size}}}, '
    elif (clip.short_side or clip.crop_size) != clip.crop_size * 256 // 224:  # what its processor always takes
        size = f'size={{"shortest_edge": {clip.short_side or clip.crop_size}}}, '
    inner = "model" if source.probe is None else "model.vjepa2"
    logits = "" if source.probe is None else "    logits = model(**inputs).logits\n"
    return (
        f"import numpy as np\nimport torch\nfrom transformers import AutoVideoProcessor, {model}\n\n"
        f'processor = AutoVideoProcessor.from_pretrained("{name}")\nmodel = {model}.from_pretrained("{name}").eval()\n'
        f'{frames}inputs = processor(frames, {size}return_tensors="pt")\nwith torch.inference_mode():\n'
        f"    tokens = {inner}(**inputs, skip_predictor=True).last_hidden_state  # {shape}\n{logits}"
    )
