"""Folders as timm publishes its models on Hugging Face. Import after `backend.activate`."""

from __future__ import annotations

import contextlib
import io
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import keras
import keras_hub
import numpy as np

from kft import backend
from kft.backbones import filling, initial
from kft.backbones.backbone import Images, PublishedHead
from kft.backbones.folders import ModelFolder
from kft.backbones.tensors import Tensors, opened
from kft.backbones.vision import efficientnet
from kft.backbones.vision.measures import VARIANTS
from kft.errors import ModelError
from kft.recipe import Model

# timm's names with tf_ are those with TensorFlow's padding and epsilon.
PADDED_AS_TENSORFLOW = re.compile(r"^tf_efficientnet_(b[0-7]|lite[0-4])$")
# What KerasHub computes as timm does, by the beginning of timm's names. Not DenseNet and EfficientNet-EdgeTPU, whose features
# differ by 0.08 and 0.7 of the largest, and not HGNetV2, whose weights do not fit KerasHub's class.
KERAS_HUB = ("resnet", "efficientnet_b", "efficientnet_lite", "cspresne", "cspdarknet", "darknet", "mobilenetv3", "vgg")
COUNTER = ".num_batches_tracked"
# Families whose own head has layers below its last one, which KerasHub's backbones end before.
TAILS = ("mobilenetv3", "vgg")
BELOW_LAST = ("conv_head.", "pre_logits.")


def load(folder: ModelFolder, config: Model) -> tuple[Any, Images, PublishedHead | None]:
    """Builds a backbone as its configuration says, with the folder's weights or random ones.

    Returns:
        The backbone, how it wants its images, and the head that was published with it, if one on the mean of features was.

    Raises:
        ModelError: if kft does not know the architecture, or weights and places do not fit.
    """
    architecture = str(folder.config["architecture"])
    if config.config or config.attention_dropout is not None:
        raise ModelError(
            f"model.config and model.attention_dropout do not change a model of timm's ({architecture}). Leave them out."
        )
    if known := PADDED_AS_TENSORFLOW.match(architecture):
        shape = VARIANTS[known[1]]
        with initial.undrawn() if config.pretrained else contextlib.nullcontext():
            model = efficientnet.build(shape, config.dropout or 0.0)
    elif architecture.startswith(KERAS_HUB):
        model = _keras_hub(folder, config, architecture)
    else:
        raise ModelError(
            f"'{folder.handle}' is timm's {architecture}, which kft has no backbone for. Allowed: tf_efficientnet_b0 to _b7 and "
            f"_lite0 to _lite4, and names that begin with {', '.join(KERAS_HUB)}, as far as KerasHub knows them."
        )
    images = _images(folder.config)
    if not config.pretrained:
        return model, images, None
    head = str(_settings(folder.config).get("classifier") or "fc")
    tensors = opened(folder.path)
    if known:
        found = list(efficientnet.places(model, shape))
        filling.fill(found, tensors, "", lambda name: _is_beside(name, head), f"timm {architecture}")
    else:
        _all_placed(model, tensors, architecture, head)
    return model, images, _published(tensors, folder.config, head, architecture, model)


def _keras_hub(folder: ModelFolder, config: Model, architecture: str) -> Any:
    changes = {"dropout": config.dropout} if config.dropout is not None and architecture.startswith("eff") else {}
    if config.pretrained and not any(folder.path.glob("*.safetensors")):
        raise ModelError(f"'{folder.path}' has no model.safetensors, which KerasHub needs for {architecture}.")
    try:
        # Its converter of MobileNets prints every weight.
        with (
            contextlib.redirect_stdout(io.StringIO()),
            backend.without_tensorflow(),
            initial.undrawn() if config.pretrained else contextlib.nullcontext(),
        ):
            return keras_hub.models.Backbone.from_preset(str(folder.path), load_weights=config.pretrained, **changes)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"KerasHub cannot build '{folder.handle}' (timm's {architecture}): {reason}") from None


def _is_beside(name: str, head: str) -> bool:
    return name.endswith(COUNTER) or name.startswith(f"{head}.")


def _all_placed(model: Any, tensors: Tensors, architecture: str, head: str) -> None:
    """Sees to it that each published tensor is a weight of the model now, and each weight a tensor.

    KerasHub's converters take what they want and say nothing of the rest. They only move axes, so a tensor is known by its
    numbers, whatever their order.

    Raises:
        ModelError: if one is not; the message names it.
    """
    wanted = Counter(_mark(keras.ops.convert_to_numpy(w)) for w in model.weights if "float" in str(w.dtype))
    left = []
    for name in tensors:
        if _is_beside(name, head):
            continue
        mark = _mark(np.asarray(tensors[name], np.float32))
        if wanted[mark] > 0:
            wanted[mark] -= 1
        else:
            left.append(name)
    empty = sum(wanted.values())
    left = [name for name in left if not (architecture.startswith(TAILS) and name.startswith(BELOW_LAST))]
    if left or empty:
        listed = ", ".join(left[:4]) + (f" and {len(left) - 4} more" if len(left) > 4 else "")
        raise ModelError(
            f"'{tensors.place}': KerasHub's {type(model).__name__} has no place for {listed or 'nothing'}, and {empty} weights "
            f"that no tensor fills. It is not the {architecture} that config.json names, or a variant KerasHub does not know."
        )


def _mark(array: np.ndarray) -> tuple[int, int, int]:
    """Returns numbers that are the same for the same values in any order: sums over their bits."""
    bits = np.ascontiguousarray(array, np.float32).reshape(-1).view(np.uint32).astype(np.uint64)
    return len(bits), int(bits.sum(dtype=np.uint64)), int((bits * bits).sum(dtype=np.uint64))


def _settings(config: Mapping[str, Any]) -> Mapping[str, Any]:
    found = config.get("pretrained_cfg")
    return found if isinstance(found, Mapping) else {}


def _images(config: Mapping[str, Any]) -> Images:
    settings = _settings(config)
    size = settings.get("input_size") or (3, 224, 224)
    mean, deviation = settings.get("mean") or (0.485, 0.456, 0.406), settings.get("std") or (0.229, 0.224, 0.225)
    return Images(
        (int(size[1]), int(size[2])),
        int(size[0]),
        tuple(255 * float(value) for value in mean),
        tuple(255 * float(value) for value in deviation),
    )


def _published(
    tensors: Tensors, config: Mapping[str, Any], head: str, architecture: str, model: Any
) -> PublishedHead | None:
    names = [f"{head}.{part}" for part in ("weight", "bias")]
    if architecture.startswith(TAILS) or any(name not in tensors for name in names):
        return None
    kernel, bias = (np.asarray(tensors[name], np.float32) for name in names)
    kernel = kernel.reshape(kernel.shape[0], -1).T
    if kernel.shape[0] != model.output.shape[-1]:
        return None
    named = config.get("label_names")
    labels = tuple(map(str, named)) if isinstance(named, list) and len(named) == len(bias) else ()
    return PublishedHead(
        "image", labels or tuple(f"LABEL_{number}" for number in range(len(bias))), {"logits": (kernel, bias)}
    )
