"""What KerasHub's converters leave out of the configurations of the Gemma models, and what of it KerasHub computes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from kft.backbones import rotary
from kft.backbones.hub.configs import completed, ropes_of
from kft.backbones.hub.kinds import LINEAR, Config, HubType, arguments, kind_of, layers_of, require

SOFT = ("gelu_pytorch_tanh", "gelu_new", None)
# A norm within has this epsilon, whatever its model has.
SIXTH = {"rms_norm_eps": (1e-6,)}
CAUSAL = {"use_bidirectional_attention": (None, False)}
GEMMA = {**SIXTH, "attention_bias": (False,)}
SIGLIP = {"hidden_act": ("gelu_pytorch_tanh",), "layer_norm_eps": (1e-6,), "num_channels": (3,)}
# What transformers calls the weights of a model of SigLIP's tower and a Gemma has changed twice; these rules make the
# oldest names, which most published files have, of each of them.
SPELLINGS = (
    (r"^model\.(?=(language_model|vision_tower|multi_modal_projector)\.)", ""),
    (r"^language_model\.(?!model\.|lm_head\.)", "language_model.model."),
    (r"^vision_tower\.(?!vision_model\.)", "vision_tower.vision_model."),
)


def _pattern(config: Config, every: int) -> None:
    """Raises a ModelError unless all but each `every`-th layer see no more than a window."""
    wanted = ["full_attention" if i % every == every - 1 else "sliding_attention" for i in range(layers_of(config))]
    require(config, "layer_types", config.get("layer_types") or wanted, (wanted,))


def steeper(config: Config) -> float:
    """Returns what makes scores as large as query_pre_attn_scalar has them: KerasHub divides by the root of head_dim."""
    return math.sqrt(config["head_dim"] / config["query_pre_attn_scalar"])


def steeper_queries(config: Config) -> dict[str, float]:
    """Returns the factors of Gemma 2, on the layers of queries."""
    factor = steeper(config)
    names = [f"model.layers.{i}.self_attn.q_proj.weight" for i in range(layers_of(config))]
    return dict.fromkeys(names, factor) if factor != 1 else {}


def steeper_norms(config: Config, start: str = "model.") -> dict[str, float]:
    """Returns the factors of Gemma 3, which normalizes queries; what a norm multiplies with is one more than its weight."""
    factor = steeper(config)
    names = [f"{start}layers.{i}.self_attn.q_norm.weight" for i in range(layers_of(config))]
    return dict.fromkeys(names, factor) if factor != 1 else {}


def steeper_norms_within(config: Config) -> dict[str, float]:
    """Returns the factors of Gemma 3 where it is the part for texts of a whole."""
    return steeper_norms(config["text_config"], "language_model.model.")


def less_one(scales: Callable[[Config], dict[str, float]]) -> Callable[[Config], dict[str, float]]:
    """Returns what is added to a norm's weight that has a factor, so that one more than the weight has it."""
    return lambda config: {name: factor - 1 for name, factor in scales(config).items()}


def _theta(name: str, rope: Config, config: Config, wanted: float) -> None:
    require(config, name, float(rope.get("rope_theta", wanted)), (wanted,))


def gemma(config: Config) -> dict[str, Any]:
    """Raises a ModelError if queries and keys are turned by other waves than KerasHub's."""
    _theta("rope_theta", {**config, **rotary.fields_of(config)}, config, 10000.0)
    return {}


def gemma2(config: Config) -> dict[str, Any]:
    """Returns Gemma 2's arguments, and sees to it that every other layer has a window."""
    _pattern(config, 2)
    return gemma(config) | {"query_head_dim_normalize": True}


def gemma3(config: Config) -> dict[str, Any]:
    """Returns Gemma 3's arguments, and sees to it that five of six layers have a window and waves of their own."""
    if not config.get("layer_types"):
        require(config, "sliding_window_pattern", config.get("sliding_window_pattern") or 6, (6,))
    _pattern(config, 6)
    rope = config.get("rope_parameters") or {}
    local, whole = rope.get("sliding_attention") or {}, rope.get("full_attention") or config.get("rope_scaling") or {}
    for part in (local, whole):
        require(config, "rope_type", kind_of(part), ("default", "linear"))
    _theta(
        "rope_theta of sliding_attention", {"rope_theta": config.get("rope_local_base_freq", 1e4)} | local, config, 1e4
    )
    _theta("rope_theta of full_attention", {"rope_theta": config.get("rope_theta", 1e6)} | whole, config, 1e6)
    found: dict[str, Any] = {"query_head_dim_normalize": True, "is_embedding_model": False}
    if config.get("use_bidirectional_attention"):
        # transformers lets a token see half of the window on either side; KerasHub one less behind, of an even one.
        found["sliding_window_size"] = config["sliding_window"] // 2 * 2 + 1
    return found


def tower(config: Config) -> dict[str, Any]:
    """Returns what is said of the tower within KerasHub's Gemma 3 and PaliGemma, whose epsilon and activation are its own.

    Raises:
        ModelError: if it is of another kind, or has another epsilon or activation.
    """
    vision: dict[str, Any] = completed(config)["vision_config"]
    require(vision, "model_type", vision["model_type"], ("siglip_vision_model",))
    for name, values in SIGLIP.items():
        require(vision, name, vision.get(name, values[0]), values)
    return vision


def t5gemma2(config: Config) -> dict[str, Any]:
    """Raises a ModelError if encoder and decoder differ in what KerasHub takes of the decoder for both."""
    encoder, decoder, sees = config["encoder"]["text_config"], config["decoder"], config["encoder"]["vision_config"]
    kind = {"model_type": config["model_type"]}
    for name in ("rms_norm_eps", "query_pre_attn_scalar", "sliding_window"):
        require(kind, f"{name} of the encoder", encoder.get(name), (decoder.get(name),))
    found = {}
    for part, start in ((encoder, "encoder_"), (decoder, "")):
        ropes = ropes_of(part)
        whole, near = ropes["full_attention"], ropes["sliding_attention"]
        require(kind, "hidden_activation", part.get("hidden_activation", SOFT[0]), SOFT[:1])
        for name in ("attention_bias", "attn_logit_softcapping"):
            require(kind, name, part.get(name), (None, False))
        require(kind, "rope_theta of full_attention", float(whole["rope_theta"]), (1e6,))
        require(kind, "rope_type of full_attention", kind_of(whole), LINEAR)
        require(kind, "rope_type of sliding_attention", kind_of(near), ("default",))
        found[f"{start}rope_max_wavelength"] = float(near["rope_theta"])
        found[f"{start}global_rope_scaling_factor"] = float(whole["factor"]) if kind_of(whole) == "linear" else 1.0
    require(kind, "hidden_act of vision_config", sees.get("hidden_act", SOFT[0]), SOFT[:1])
    # Its tower has this epsilon, whatever is asked for.
    require(kind, "layer_norm_eps of vision_config", sees.get("layer_norm_eps", 1e-6), (1e-6,))
    require(kind, "num_channels of vision_config", sees.get("num_channels", 3), (3,))
    return found


TEXT = HubType(
    "model.",
    only={**GEMMA, "hidden_activation": SOFT, "attn_logit_softcapping": (None,)},
    more=gemma3,
    scales=steeper_norms,
    offsets=less_one(steeper_norms),
)


def gemma3_whole(config: Config) -> dict[str, Any]:
    """Returns the arguments of the part for texts, and sees to it that images are read as KerasHub does.

    KerasHub hides tokens of an image that are further behind than the window, transformers does not.
    """
    text, vision = config["text_config"], tower(config)
    require(text, "use_bidirectional_attention", text.get("use_bidirectional_attention"), (None, False))
    side, tokens = vision["image_size"] // vision["patch_size"], config.get("mm_tokens_per_image", 256)
    require(config, "mm_tokens_per_image", tokens, ((side // 4) ** 2,))
    if text["sliding_window"] < tokens:
        require(text, "sliding_window", text["sliding_window"], (f"{tokens} or more",))
    return arguments(text, TEXT)
