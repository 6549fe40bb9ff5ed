"""Torch's checkpoints of images' models, put once into timm's layout, in the cache; torch reads them with `weights_only`."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kft.backbones.tensors import Tensors, torch_tensors
from kft.backbones.vision.measures import VARIANTS, EfficientNet, blocks
from kft.errors import ModelError
from kft.fetch import cache_folder, file_sha256
from kft.rundir import make_folder

SUFFIXES = (".pth", ".pt")
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
# (x - 127) / 128, as Lite's makers scale images.
LITE = {"mean": [127 / 255] * 3, "std": [128 / 255] * 3}
# Blocks in each of a ResNet's four stages, and whether these are bottlenecks; table 1 of arXiv:1512.03385.
RESNETS: dict[tuple[tuple[int, ...], bool], str] = {
    ((2, 2, 2, 2), False): "resnet18",
    ((3, 4, 6, 3), False): "resnet34",
    ((3, 4, 6, 3), True): "resnet50",
    ((3, 4, 23, 3), True): "resnet101",
    ((3, 8, 36, 3), True): "resnet152",
}

Names = dict[str, str]


def folder_for(file: Path) -> Path:
    """Returns the cached folder in timm's layout that a checkpoint becomes, which is made where it is not there.

    Raises:
        ModelError: if it is of no known type, holds more than weights, is broken, or torch is not installed.
    """
    place = cache_folder() / "published" / hashlib.sha256(f"timm 1 {file_sha256(file)}".encode()).hexdigest()[:32]
    if not (place / "config.json").is_file():
        make_folder(place, lambda folder: _convert(file, folder))
    return place


def _convert(file: Path, folder: Path) -> None:
    from safetensors.numpy import save_file

    tensors = torch_tensors(file)
    names = {name.removeprefix("module."): name for name in tensors}
    known = _efficientnet(names, tensors) or _resnet(names, tensors)
    if known is None:
        some = ", ".join(list(names)[:3]) or "no tensors"
        raise ModelError(
            f"'{file}' is of no type that kft knows by its weights ({some} …). Known are EfficientNet and EfficientNet-Lite as "
            "EfficientNet-PyTorch names them, and torchvision's ResNets. Save the model in a folder with config.json instead."
        )
    config, renamed = known
    save_file(
        {new: np.ascontiguousarray(tensors[names[old]]) for old, new in renamed.items()},
        str(folder / "model.safetensors"),
    )
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf8")


def _config(architecture: str, outputs: int, classifier: str, size: int, scale: Mapping[str, Any]) -> dict[str, Any]:
    settings = {"classifier": classifier, "input_size": [3, size, size], "interpolation": "bilinear", **scale}
    return {"architecture": architecture, "num_classes": outputs, "pretrained_cfg": settings}


def _efficientnet(names: Names, tensors: Tensors) -> tuple[dict[str, Any], Names] | None:
    """Reads what EfficientNet-PyTorch (https://github.com/lukemelas/EfficientNet-PyTorch) and its Lite kin write."""
    if "_conv_stem.weight" not in names or "_fc.weight" not in names:
        return None
    lite = not any("._se_reduce." in name for name in names)

    def fits(shape: EfficientNet) -> bool:
        wanted = {f"_blocks.{n}._depthwise_conv.weight": block.expanded for n, block in enumerate(blocks(shape))}
        found = {name for name in names if name.endswith("._depthwise_conv.weight")}
        return found == set(wanted) and all(tensors[names[n]].shape[0] == size for n, size in wanted.items())

    kind = next((kind for kind, shape in VARIANTS.items() if shape.lite == lite and fits(shape)), None)
    if kind is None:
        return None
    shape = VARIANTS[kind]
    found = blocks(shape)
    outputs = tensors[names["_fc.bias"]].shape[0]
    config = _config(f"tf_efficientnet_{kind}", outputs, "classifier", shape.size, LITE if lite else IMAGENET)
    return config, {
        name: _timm_name(name, [(b.stage, b.place, b.expanded != b.inputs) for b in found]) for name in names
    }


def _timm_name(name: str, found: list[tuple[int, int, bool]]) -> str:
    top = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    match = re.match(r"_blocks\.(\d+)\.(\w+)\.(.+)$", name)
    if match is None:
        first, _, rest = name.partition(".")
        return f"{top.get(first, first)}.{rest}"
    stage, place, expands = found[int(match[1])]
    first = match[2]
    if gate := re.match(r"_se_(reduce|expand)$", first):
        part = f"se.conv_{gate[1]}"
    elif norm := re.match(r"_bn(\d)$", first):
        part = f"bn{int(norm[1]) + expands}"
    else:
        last = "conv_pwl" if expands else "conv_pw"
        part = {"_expand_conv": "conv_pw", "_depthwise_conv": "conv_dw", "_project_conv": last}.get(first, first)
    return f"blocks.{stage}.{place}.{part}.{match[3]}"


def _resnet(names: Names, tensors: Tensors) -> tuple[dict[str, Any], Names] | None:
    """Reads torchvision's ResNets, whose names and arithmetic timm shares."""
    if "conv1.weight" not in names or "fc.weight" not in names or tensors[names["conv1.weight"]].shape[0] != 64:
        return None
    numbers = [
        {match[1] for name in names if (match := re.match(rf"layer{stage}\.(\d+)\.", name))} for stage in range(1, 5)
    ]
    bottleneck = "layer1.0.conv3.weight" in names
    kind = RESNETS.get((tuple(len(found) for found in numbers), bottleneck))
    wide = names.get("layer1.0.conv2.weight")
    if kind is None or wide is None or tensors[wide].shape[:2] != (64, 64):
        return None
    return _config(kind, tensors[names["fc.bias"]].shape[0], "fc", 224, IMAGENET), {name: name for name in names}
