"""Which models of Hugging Face's are read through KerasHub's converters, and with which settings.

The converters leave fields of `config.json` out without a word. Here is what of them an argument of KerasHub's class says, and
what must have the value that KerasHub computes with.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kft.backbones.backbone import Modality
from kft.backbones.families import rotary
from kft.backbones.hugging_face import DECODER, NEWER_DECODER, Head
from kft.errors import ModelError

Config = Mapping[str, Any]


@dataclass(frozen=True)
class HubType:
    """What kft knows of a `model_type`.

    Attributes:
        prefix: what a model with a head puts before the names of its backbone's weights.
        fields: fields that the converter leaves out, and the arguments of KerasHub's class they are.
        only: fields, and the values with which KerasHub computes what they mean; the first is taken where one is not there.
        ropes: the ways to turn queries and keys by their positions that KerasHub computes.
        heads: whether a head has to be as wide as the states, divided by their number.
        more: looks at what one field does not tell, and returns further arguments.
        without_way_back: whether the way back from states to tokens, which no head of kft's reads, need not be loaded.
        scales: what KerasHub leaves out and a factor on a tensor makes up for.
        offsets: what is added to a tensor that has a factor.
        spellings: regular expressions, and what makes the names of weights those that KerasHub's converter knows.
        converter: the `model_type` whose converter of KerasHub's reads it, where it has none of its own.
        modality: what the model reads, where it is more than texts or more than images.
        head: how its makers' own heads are called, or None where published heads are not read.
        spare: names of weights that nothing needs, where they are not those that most types have.
    """

    prefix: str
    fields: Mapping[str, str] = field(default_factory=dict)
    only: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    ropes: tuple[str, ...] = ("default",)
    heads: bool = False
    more: Callable[[Config], dict[str, Any]] = lambda config: {}
    without_way_back: bool = False
    scales: Callable[[Config], dict[str, float]] = lambda config: {}
    offsets: Callable[[Config], dict[str, float]] = lambda config: {}
    spellings: tuple[tuple[str, str], ...] = ()
    converter: str = ""
    modality: Modality | None = None
    head: Head | None = NEWER_DECODER
    spare: re.Pattern[str] | None = None


def arguments(config: Config, known: HubType) -> dict[str, Any]:
    """Returns the arguments that KerasHub's converter leaves out.

    Raises:
        ModelError: if the configuration asks for what KerasHub computes otherwise; the message names the field.
    """
    for name, values in known.only.items():
        require(config, name, config.get(name, values[0]), values)
    if known.heads:
        whole, heads = config["hidden_size"], config["num_attention_heads"]
        require(config, "head_dim", config.get("head_dim") or whole // heads, (whole // heads,))
    found = {ours: config[name] for name, ours in known.fields.items() if config.get(name) is not None}
    tied = {"tie_word_embeddings": True} if known.without_way_back else {}
    return {**found, **tied, **_turned(config, known.ropes), **known.more(config)}


def require(config: Config, name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    """Raises a ModelError that names a field, if its value is not one of those that KerasHub computes."""
    if value not in allowed:
        said = " or ".join(repr(one) for one in allowed)
        raise ModelError(
            f"{name} in config.json is {value!r}; for {config['model_type']} KerasHub computes {said} only. Take a model that "
            "has it so."
        )


def completed(config: Config) -> dict[str, Any]:
    """Returns `config.json` with what transformers takes for fields that it leaves out, those of its parts too.

    Raises:
        ModelError: if it has no such part.
    """
    whole = str(config["model_type"])
    found = {**DEFAULTS.get(whole, {}), **config}
    for part, kind in INNER.get(whole, {}).items():
        if not isinstance(config.get(part), Mapping):
            raise ModelError(f"config.json has no {part}, which a {whole} has. Get the file again.")
        found[part] = completed({"model_type": kind, **config[part]})
    return found


def adapted(config: Config) -> dict[str, Any]:
    """Returns `config.json` with fields where KerasHub's converters look for them."""
    kind, rope, changed = config["model_type"], rotary.fields_of(config), completed(config)
    if kind in DEFAULTS and "num_attention_heads" in config:
        changed.setdefault("num_key_value_heads", config["num_attention_heads"])
    if "num_local_experts" in config:
        changed.setdefault("num_experts", config["num_local_experts"])
    if kind == "t5gemma2":
        text = {**config["encoder"]["text_config"], "rope_parameters": _ropes(config["encoder"]["text_config"])}
        changed["encoder"] = {**config["encoder"], "text_config": text}
        changed["decoder"] = {**config["decoder"], "rope_parameters": _ropes(config["decoder"])}
        changed["eoi_token_index"] = config["encoder"].get("eoi_token_index", 256_000)
    if kind == "llama":
        changed["rope_parameters"], changed["rope_scaling"] = rope, rope if _kind(rope) == "llama3" else None
    return changed


def _kind(rope: Config) -> str:
    return str(rope.get("rope_type", rope.get("type", "default")))


def _turned(config: Config, ropes: tuple[str, ...]) -> dict[str, Any]:
    rope = rotary.fields_of(config)
    kind = _kind(rope)
    require(config, "rope_type", kind, ropes)
    return {"rope_scaling_factor": rope["factor"]} if kind == "linear" else {}


def _whole(config: Config) -> dict[str, Any]:
    """Raises a ModelError if a token of Qwen's sees no more than a window, which KerasHub leaves out."""
    first = config.get("max_window_layers", 28)
    if config.get("use_sliding_window"):
        made = ["full_attention" if i < first else "sliding_attention" for i in range(_layers(config))]
        kinds = sorted(set(config.get("layer_types") or made))
        require(config, "layer_types", kinds, (["full_attention"],))
    return {"sliding_window_size": None}


def _pattern(config: Config, every: int) -> None:
    """Raises a ModelError unless all but each `every`-th layer see no more than a window."""
    wanted = ["full_attention" if i % every == every - 1 else "sliding_attention" for i in range(_layers(config))]
    require(config, "layer_types", config.get("layer_types") or wanted, (wanted,))


def _layers(config: Config) -> int:
    return int(config["num_hidden_layers"])


def steeper(config: Config) -> float:
    """Returns what makes scores as large as query_pre_attn_scalar has them: KerasHub divides by the root of head_dim."""
    return math.sqrt(config["head_dim"] / config["query_pre_attn_scalar"])


def _steeper(config: Config) -> dict[str, float]:
    factor = steeper(config)
    names = [f"model.layers.{i}.self_attn.q_proj.weight" for i in range(_layers(config))]
    return dict.fromkeys(names, factor) if factor != 1 else {}


def _steeper_norms(config: Config, start: str = "model.") -> dict[str, float]:
    """Returns the factors of Gemma 3, which normalizes queries; what a norm multiplies with is one more than its weight."""
    factor = steeper(config)
    names = [f"{start}layers.{i}.self_attn.q_norm.weight" for i in range(_layers(config))]
    return dict.fromkeys(names, factor) if factor != 1 else {}


def _less_one(scales: Callable[[Config], dict[str, float]]) -> Callable[[Config], dict[str, float]]:
    return lambda config: {name: factor - 1 for name, factor in scales(config).items()}


def _within_gemma3(config: Config) -> dict[str, float]:
    return _steeper_norms(config["text_config"], "language_model.model.")


def _theta(name: str, rope: Config, config: Config, wanted: float) -> None:
    require(config, name, float(rope.get("rope_theta", wanted)), (wanted,))


def _gemma(config: Config) -> dict[str, Any]:
    _theta("rope_theta", {**config, **rotary.fields_of(config)}, config, 10000.0)
    return {}


def _gemma2(config: Config) -> dict[str, Any]:
    _pattern(config, 2)
    return _gemma(config) | {"query_head_dim_normalize": True}


def _gemma3(config: Config) -> dict[str, Any]:
    if not config.get("layer_types"):
        require(config, "sliding_window_pattern", config.get("sliding_window_pattern") or 6, (6,))
    _pattern(config, 6)
    rope = config.get("rope_parameters") or {}
    local, whole = rope.get("sliding_attention") or {}, rope.get("full_attention") or config.get("rope_scaling") or {}
    for part in (local, whole):
        require(config, "rope_type", _kind(part), ("default", "linear"))
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


def _gemma3_whole(config: Config) -> dict[str, Any]:
    """Returns the arguments of the part for texts, and sees to it that images are read as KerasHub does.

    KerasHub hides tokens of an image that are further behind than the window, transformers does not.
    """
    text, vision = config["text_config"], tower(config)
    require(text, "use_bidirectional_attention", text.get("use_bidirectional_attention"), (None, False))
    side, tokens = vision["image_size"] // vision["patch_size"], config.get("mm_tokens_per_image", 256)
    require(config, "mm_tokens_per_image", tokens, ((side // 4) ** 2,))
    if text["sliding_window"] < tokens:
        require(text, "sliding_window", text["sliding_window"], (f"{tokens} or more",))
    return arguments(text, TYPES["gemma3_text"])


def _ropes(part: Config) -> dict[str, dict[str, Any]]:
    """Returns how Gemma 3's two kinds of layers turn queries and keys, from fields of either time."""
    own = part.get("rope_parameters") or {}
    whole = own.get("full_attention") or part.get("rope_scaling") or {}
    return {
        "full_attention": {"rope_theta": part.get("rope_theta", 1e6), **whole},
        "sliding_attention": {
            "rope_theta": part.get("rope_local_base_freq", 1e4),
            **(own.get("sliding_attention") or {}),
        },
    }


def _t5gemma2(config: Config) -> dict[str, Any]:
    """Raises a ModelError if encoder and decoder differ in what KerasHub takes of the decoder for both."""
    encoder, decoder, sees = config["encoder"]["text_config"], config["decoder"], config["encoder"]["vision_config"]
    kind = {"model_type": config["model_type"]}
    for name in ("rms_norm_eps", "query_pre_attn_scalar", "sliding_window"):
        require(kind, f"{name} of the encoder", encoder.get(name), (decoder.get(name),))
    found = {}
    for part, start in ((encoder, "encoder_"), (decoder, "")):
        ropes = _ropes(part)
        whole, near = ropes["full_attention"], ropes["sliding_attention"]
        require(kind, "hidden_activation", part.get("hidden_activation", SOFT[0]), SOFT[:1])
        for name in ("attention_bias", "attn_logit_softcapping"):
            require(kind, name, part.get(name), (None, False))
        require(kind, "rope_theta of full_attention", float(whole["rope_theta"]), (1e6,))
        require(kind, "rope_type of full_attention", _kind(whole), LINEAR)
        require(kind, "rope_type of sliding_attention", _kind(near), ("default",))
        found[f"{start}rope_max_wavelength"] = float(near["rope_theta"])
        found[f"{start}global_rope_scaling_factor"] = float(whole["factor"]) if _kind(whole) == "linear" else 1.0
    require(kind, "hidden_act of vision_config", sees.get("hidden_act", SOFT[0]), SOFT[:1])
    # Its tower has this epsilon, whatever is asked for.
    require(kind, "layer_norm_eps of vision_config", sees.get("layer_norm_eps", 1e-6), (1e-6,))
    require(kind, "num_channels of vision_config", sees.get("num_channels", 3), (3,))
    return found


def _windows(config: Config) -> dict[str, Any]:
    """Raises a ModelError unless windows cut each stage's image without a rest, which KerasHub does not pad."""
    window, side = config["window_size"], config["image_size"] // config["patch_size"]
    for stage in range(len(config["depths"])):
        if (side >> stage) % window:
            raise ModelError(
                f"window_size in config.json is {window}; at stage {stage + 1} of {len(config['depths'])} the image has "
                f"{side >> stage} patches a side, and KerasHub's swin needs a multiple. Take a model for another image_size."
            )
    return {}


# What transformers takes where an older config.json says nothing.
DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {"rope_theta": 10000.0, "tie_word_embeddings": False},
    "mistral": {"rope_theta": 10000.0, "sliding_window": 4096},
    "vit": {"qkv_bias": True},
    "deit": {"qkv_bias": True},
    "gemma": {"head_dim": 256},
    "gemma2": {
        "head_dim": 256,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "attn_logit_softcapping": 50.0,
    },
    "gemma3_text": {
        "vocab_size": 262208,
        "head_dim": 256,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
    },
    "siglip_vision_model": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "image_size": 224,
        "patch_size": 16,
    },
}
# What transformers calls the weights of a model of SigLIP's tower and a Gemma has changed twice; these rules make the
# oldest names, which most published files have, of each of them.
SPELLINGS = (
    (r"^model\.(?=(language_model|vision_tower|multi_modal_projector)\.)", ""),
    (r"^language_model\.(?!model\.|lm_head\.)", "language_model.model."),
    (r"^vision_tower\.(?!vision_model\.)", "vision_tower.vision_model."),
)
# The parts of a model, and what they are where they do not say so themselves.
INNER = {
    "gemma3": {"text_config": "gemma3_text", "vision_config": "siglip_vision_model"},
    "paligemma": {"text_config": "gemma", "vision_config": "siglip_vision_model"},
}
SILU = {"hidden_act": ("silu",)}
PLAIN = {**SILU, "attention_bias": (False,), "mlp_bias": (False,)}
EPSILON = {"rms_norm_eps": "layer_norm_epsilon"}
LINEAR = ("default", "linear")
SOFT = ("gelu_pytorch_tanh", "gelu_new", None)
# A norm within has this epsilon, whatever its model has.
SIXTH = {"rms_norm_eps": (1e-6,)}
SPARSE: dict[str, tuple[Any, ...]] = {"decoder_sparse_step": (1,), "mlp_only_layers": ([], None)}
CAUSAL = {"use_bidirectional_attention": (None, False)}
GEMMA = {**SIXTH, "attention_bias": (False,)}
SIGLIP = {"hidden_act": ("gelu_pytorch_tanh",), "layer_norm_eps": (1e-6,), "num_channels": (3,)}
GELU = {"hidden_act": ("gelu",), "qkv_bias": (True,), "num_channels": (3,)}
# The heads of DINO's makers read the class token and the mean of all patches together, which kft's do not.
DINO2 = HubType("dinov2.", only={**GELU, "layer_norm_eps": (1e-6,)}, head=None)
TYPES = {
    "llama": HubType("model.", EPSILON, PLAIN, ("default", "llama3"), heads=True, without_way_back=True),
    "mistral": HubType("model.", only=SILU, ropes=LINEAR),
    "mixtral": HubType("model.", only=SILU, ropes=LINEAR, heads=True),
    "qwen2": HubType("model.", {}, SILU, LINEAR, heads=True, more=_whole, without_way_back=True),
    # With another epsilon than that of KerasHub's norms of queries and keys it is drawn, as all that Qwen published is.
    "qwen3": HubType("model.", {}, {**PLAIN, "rms_norm_eps": (1e-5,)}, LINEAR, more=_whole, without_way_back=True),
    "qwen2_moe": HubType(
        "model.",
        {},
        {**SILU, **SPARSE, "qkv_bias": (True,)},
        LINEAR,
        heads=True,
        more=_whole,
        without_way_back=True,
    ),
    "qwen3_moe": HubType(
        "model.",
        {},
        {**PLAIN, **SPARSE, **SIXTH},
        LINEAR,
        more=_whole,
        without_way_back=True,
    ),
    "smollm3": HubType("model.", {}, {**PLAIN, "use_sliding_window": (False, None)}, heads=True),
    "gemma": HubType(
        "model.",
        # What its first files call gelu, transformers computes by the approximation too.
        only={**GEMMA, **CAUSAL, "hidden_activation": SOFT, "hidden_act": (*SOFT, "gelu")},
        more=_gemma,
    ),
    "gemma2": HubType(
        "model.",
        only={**GEMMA, **CAUSAL, "hidden_activation": SOFT},
        more=_gemma2,
        scales=_steeper,
    ),
    "gemma3_text": HubType(
        "model.",
        only={**GEMMA, "hidden_activation": SOFT, "attn_logit_softcapping": (None,)},
        more=_gemma3,
        scales=_steeper_norms,
        offsets=_less_one(_steeper_norms),
    ),
    "gemma3": HubType(
        "",
        more=_gemma3_whole,
        scales=_within_gemma3,
        offsets=_less_one(_within_gemma3),
        spellings=SPELLINGS,
        modality="image_text",
        head=None,
    ),
    "t5gemma2": HubType(
        "model.",
        more=_t5gemma2,
        without_way_back=True,
        modality="image_text",
        spare=re.compile(r"(^|\.)(lm_head|score)\.|\.vision_tower\.(vision_model\.)?head\."),
    ),
    "gpt2": HubType(
        "transformer.",
        {"n_inner": "intermediate_dim"},
        {
            "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
            "layer_norm_epsilon": (1e-5,),
            "scale_attn_weights": (True,),
            "scale_attn_by_inverse_layer_idx": (False,),
            "add_cross_attention": (False,),
        },
        head=DECODER,
    ),
    "vit": HubType("vit.", {"layer_norm_eps": "layer_norm_epsilon"}, GELU, head=Head()),
    "deit": HubType("deit.", {}, GELU, head=Head()),
    "dinov2": DINO2,
    "dinov2_with_registers": HubType("dinov2_with_registers.", only=DINO2.only, head=None),
    "dinov3_vit": HubType("", only={"num_channels": (3,)}, head=None),
    "swin": HubType(
        "swin.",
        only={
            "hidden_act": ("gelu",),
            "num_channels": (3,),
            "layer_norm_eps": (1e-5,),
            "use_absolute_embeddings": (False,),
        },
        more=_windows,
        head=Head(),
    ),
}
