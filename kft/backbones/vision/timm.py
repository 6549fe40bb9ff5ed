"""Folders as timm publishes its models on Hugging Face. Import after `backend.activate`."""

from __future__ import annotations

import contextlib
import io
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import keras
import keras_hub
import numpy as np

from kft import backend
from kft.backbones import filling, initial
from kft.backbones.backbone import Images, PublishedHead
from kft.backbones.folders import ModelFolder
from kft.backbones.places import Place
from kft.backbones.tensors import Tensors
from kft.backbones.vision import convnext, efficientnet, mobilenet_v5, mobilenet_v5_measures, vit
from kft.backbones.vision.measures import VARIANTS
from kft.errors import ModelError, listed
from kft.recipe import Model

# timm's names with tf_ are those with TensorFlow's padding and epsilon.
PADDED_AS_TENSORFLOW = re.compile(r"^tf_efficientnet_(b[0-7]|lite[0-4])$")
# What KerasHub computes as timm does, by the beginning of timm's names. Not DenseNet and EfficientNet-EdgeTPU, whose features
# differ by 0.08 and 0.7 of the largest, and not HGNetV2, whose weights do not fit KerasHub's class.
KERAS_HUB = ("resnet", "efficientnet_b", "efficientnet_lite", "cspresne", "cspdarknet", "darknet", "mobilenetv3", "vgg")
DRAWN = (
    "tf_efficientnet_b0 to _b7 and _lite0 to _lite4, vit_ and deit_ with _tiny to _huge, _patch… and the images' size behind, "
    "convnext_atto to _xxlarge, convnextv2_atto to _huge, mobilenetv5_300m, mobilenetv5_300m_enc, mobilenetv5_base"
)
# Where these differ from what a name stands for, config.json says so; they change the training, or what is read elsewhere.
WITHOUT_EFFECT = re.compile(
    r"^(num_classes|in_chans|global_pool|img_size|dynamic_img_\w+|weight_init|fix_init|head_init_scale|\w*drop\w*_rate)$"
)
COUNTER = ".num_batches_tracked"
# Those whose own head has more layers than its last one, which KerasHub's backbone ends before.
TAILS, BELOW_LAST = "vgg", "pre_logits."
# Width of the layer that MobileNetV3 has between the mean of its features and its head.
MOBILE, MOBILE_WIDTHS = "mobilenetv3", {"small": 1024, "large": 1280}


def load(folder: ModelFolder, config: Model) -> tuple[Any, Images, PublishedHead | None]:
    """Builds a backbone as its configuration says, with the folder's weights or random ones.

    Returns:
        The backbone, how it wants its images, and the head that was published with it, if one on the features was.

    Raises:
        ModelError: if kft does not know the architecture, or weights and places do not fit.
    """
    architecture = str(folder.config["architecture"])
    if config.config or config.attention_dropout is not None:
        raise ModelError(
            f"model.config and model.attention_dropout do not change a model of timm's ({architecture}). Leave them out."
        )
    images = _images(folder.config)
    drawn = _drawn(architecture, folder, images, config)
    if drawn is not None:
        with initial.undrawn() if config.pretrained else contextlib.nullcontext():
            model = drawn.build(dropout=config.dropout or 0.0)
    elif architecture.startswith(KERAS_HUB):
        model = _keras_hub(folder, config, architecture)
        if architecture.startswith(MOBILE):
            model = _with_last_layer(model, architecture)
    else:
        raise ModelError(
            f"'{folder.handle}' is timm's {architecture}, which kft has no backbone for. Allowed: {DRAWN}, and names that begin "
            f"with {', '.join(KERAS_HUB)}, as far as KerasHub knows them."
        )
    if not config.pretrained:
        return model, images, None
    return model, images, _filled(model, folder.tensors(), folder.config, architecture, drawn)


@dataclass(frozen=True)
class Drawn:
    """A network that is built and filled here, not by KerasHub's converters.

    Attributes:
        build: gives a backbone, from a rate of `dropout`.
        places: of a backbone's weights.
        classifier: how its head's names begin, or its heads', where config.json does not say it.
    """

    build: Callable[..., Any]
    places: Callable[[Any], Iterable[Place]]
    classifier: str | list[str]


def _drawn(architecture: str, folder: ModelFolder, images: Images, config: Model) -> Drawn | None:
    if known := PADDED_AS_TENSORFLOW.match(architecture):
        shape = VARIANTS[known[1]]
        if images.channels != 3:
            raise ModelError(
                f"'{folder.handle}' takes images of {images.channels} channels; kft's {architecture} takes 3."
            )
        return Drawn(partial(efficientnet.build, shape), partial(efficientnet.places, shape=shape), "classifier")
    if net := convnext.VARIANTS.get(architecture):
        _refuse_changes(folder, architecture, "avg")
        return Drawn(partial(convnext.build, net, images.channels), partial(convnext.places, shape=net), "head.fc")
    if architecture in mobilenet_v5_measures.VARIANTS and images.size:
        size = (config.image_size, config.image_size) if config.image_size else images.size
        return _mobilenet_v5(architecture, folder, size, images.channels)
    if (found := vit.named(architecture)) and images.size:
        _refuse_changes(folder, architecture, "token")
        if any(side % found.patch for side in images.size):
            raise ModelError(
                f"'{folder.handle}': config.json has images of {images.size[0]} by {images.size[1]} pixels, which patches of "
                f"{found.patch} do not fill. It is not of the {architecture} that it names."
            )
        build = partial(vit.build, found, (*images.size, images.channels))
        return Drawn(build, partial(vit.places, shape=found), ["head", "head_dist"] if found.distilled else "head")
    return None


def _mobilenet_v5(architecture: str, folder: ModelFolder, size: tuple[int, int], channels: int) -> Drawn:
    _refuse_changes(folder, architecture, "avg", mobilenet_v5_measures.CHANGES)
    shape = mobilenet_v5_measures.changed(
        mobilenet_v5_measures.VARIANTS[architecture], folder.config.get("model_args") or {}
    )
    build = partial(mobilenet_v5.build, shape, size, channels)
    return Drawn(build, partial(mobilenet_v5.places, shape=shape), "classifier")


def _refuse_changes(folder: ModelFolder, architecture: str, pooling: str, but: tuple[str, ...] = ()) -> None:
    """Sees to it that a network is the one that its name stands for, but for what may be said of it.

    Raises:
        ModelError: if config.json has other features or layers for it.
    """
    more = folder.config.get("model_args") or {}
    if others := [name for name in more if name not in but and not WITHOUT_EFFECT.match(name)]:
        raise ModelError(
            f"'{folder.handle}': model_args in config.json changes timm's {architecture} by {', '.join(others)}, and kft has "
            "only the network that the name stands for. Take a folder without it."
        )
    found = more.get("global_pool", folder.config.get("global_pool", pooling))
    if found != pooling:
        raise ModelError(
            f"'{folder.handle}': global_pool in config.json is {found!r}; of {architecture} kft knows only '{pooling}'. Take "
            "a folder with that."
        )


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


def _filled(
    model: Any, tensors: Tensors, config: Mapping[str, Any], architecture: str, drawn: Drawn | None
) -> PublishedHead | None:
    """Gives a model its weights, all of them, and returns the head among them."""
    named = _settings(config).get("classifier") or (drawn.classifier if drawn else "fc")
    heads, family = tuple(named) if isinstance(named, list) else (str(named),), f"timm {architecture}"
    if drawn:
        filling.fill(drawn.places(model), tensors, "", lambda name: _is_beside(name, heads), family)
    else:
        if architecture.startswith(MOBILE):
            last = convnext.pointwise(model.get_layer("conv_head"), "conv_head")
            filling.fill(last, tensors, "", lambda name: True, family)
        _all_placed(model, tensors, architecture, heads)
    return _published(tensors, config, heads, architecture, model)


def _with_last_layer(model: Any, architecture: str) -> Any:
    """Adds the layer that MobileNetV3 has behind the mean of its features, section 5.1 of arXiv:1905.02244."""
    width = next((found for size, found in MOBILE_WIDTHS.items() if size in architecture), MOBILE_WIDTHS["large"])
    x = keras.layers.GlobalAveragePooling2D(name="mean_of_features")(model.output)
    x = keras.layers.Dense(width, activation="hard_silu", name="conv_head")(x)
    return keras.Model(model.input, x, name=model.name)


def _is_beside(name: str, heads: tuple[str, ...]) -> bool:
    return name.endswith(COUNTER) or name.startswith(tuple(f"{head}." for head in heads))


def _all_placed(model: Any, tensors: Tensors, architecture: str, heads: tuple[str, ...]) -> None:
    """Sees to it that each published tensor is a weight of the model now, and each weight a tensor.

    KerasHub's converters take what they want and say nothing of the rest. They only move axes, so a tensor is known by its
    numbers, whatever their order.

    Raises:
        ModelError: if one is not; the message names it.
    """
    wanted = Counter(_mark(keras.ops.convert_to_numpy(w)) for w in model.weights if "float" in str(w.dtype))
    left = []
    for name in tensors:
        if _is_beside(name, heads):
            continue
        mark = _mark(np.asarray(tensors[name], np.float32))
        if wanted[mark] > 0:
            wanted[mark] -= 1
        else:
            left.append(name)
    empty = sum(wanted.values())
    left = [name for name in left if not (architecture.startswith(TAILS) and name.startswith(BELOW_LAST))]
    if left or empty:
        raise ModelError(
            f"'{tensors.place}': KerasHub's {architecture} has no place for {listed(left, 4)}, and {empty} weights "
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
    channels, *size = settings.get("input_size") or (3, 224, 224)
    # What a model was made for, where that is not what config.json took over from an older one.
    made = config.get("model_args") or {}
    channels, size = made.get("in_chans") or channels, made.get("img_size") or size
    height, width = (size, size) if isinstance(size, int) else size
    mean, deviation = settings.get("mean") or (0.485, 0.456, 0.406), settings.get("std") or (0.229, 0.224, 0.225)
    if len(mean) != channels or len(deviation) != channels:
        raise ModelError(
            f"config.json has images of {channels} channels and a mean of {len(mean)}: give pretrained_cfg in it mean and std of "
            "as many numbers."
        )
    return Images(
        (int(height), int(width)),
        int(channels),
        tuple(255 * float(value) for value in mean),
        tuple(255 * float(value) for value in deviation),
    )


def _published(
    tensors: Tensors, config: Mapping[str, Any], heads: tuple[str, ...], architecture: str, model: Any
) -> PublishedHead | None:
    names = [f"{heads[0]}.{part}" for part in ("weight", "bias")]
    # The mean of two heads on two tokens, as DeiT's distilled ones have it, is none on the class token.
    if architecture.startswith(TAILS) or len(heads) > 1 or any(name not in tensors for name in names):
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
