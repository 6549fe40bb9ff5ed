"""Parts of models that read more than one kind of input: the one that reads texts, or the one that reads images.

A task reads either, so it takes a part; a script gets the whole where it does not ask for a part.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from kft.backbones.backbone import Backbone
from kft.backbones.folders import ModelFolder
from kft.errors import ModelError, unknown

# What the whole's config.json says of a head that is on a part.
HEAD = ("architectures", "id2label")


@dataclass(frozen=True)
class Part:
    """A part of a model, which is a model by itself.

    Attributes:
        kind: the `model_type` it is read as; empty where it is cut out of the whole.
        config: the field of `config.json` that is its own; a dot leads into a field. Empty where it shares the whole one's.
        prefixes: what stands before the names of its weights; the first that is there counts, and all others are no part's.
        heads: how the names of weights begin that are of a head on it, which the whole was published with.
        cut: takes it out of the whole model, where it has no `kind`.
        of: which part it is, where `config.json` tells.
        alone: says of `config.json` whether the model has nothing but this part.
    """

    kind: str = ""
    config: str = ""
    prefixes: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()
    cut: Callable[[Any], Any] | None = None
    of: Callable[[Mapping[str, Any]], Part] | None = None
    alone: Callable[[Mapping[str, Any]], bool] = lambda config: False

    def inside(self, folder: ModelFolder) -> ModelFolder:
        """Returns a folder as if it held nothing but this part; one that is cut out later is returned as it is.

        Raises:
            ModelError: if `config.json` has no such part.
        """
        if not self.kind:
            return folder
        own: Any = folder.config
        for name in filter(None, self.config.split(".")):
            own = own.get(name) if isinstance(own, Mapping) else None
        if not isinstance(own, Mapping):
            raise ModelError(
                f"'{folder.path / 'config.json'}' has no {self.config}, which a {folder.config['model_type']} has. "
                "Get the file again."
            )
        head = {name: folder.config[name] for name in HEAD if self.heads and name in folder.config}
        config = {**own, **head, "model_type": self.kind}
        return dataclasses.replace(folder, config=config, within=self.prefixes, beside=self.heads)

    def cut_out(self, whole: Backbone, wanted: str) -> Backbone:
        """Returns the backbone that this part is, given the whole one; one that was read by itself is returned as it is."""
        if self.cut is None:
            return whole
        model = self.cut(whole.model)
        if wanted == "image":
            return dataclasses.replace(whole, model=model, modality="image", pooling="mean", tokenizer=None, head=None)
        return dataclasses.replace(whole, model=model, modality="text", images=None, head=None)


def _prompts(model: Any) -> Any:
    from kft.backbones.families import paligemma

    return paligemma.texts(model)


def _blip_2_text(config: Mapping[str, Any]) -> Part:
    """Returns what reads texts in a BLIP-2: the queries' blocks in one for retrieval, else its language model.

    Raises:
        ModelError: if the language model is of another type than the published ones.
    """
    if (config.get("qformer_config") or {}).get("use_qformer_text_input"):
        return Part("blip_2_text", "")
    kind = (config.get("text_config") or {}).get("model_type", "opt")
    if kind not in ("opt", "t5"):
        raise ModelError(unknown("model_type of text_config in config.json", kind, ["opt", "t5"]))
    return Part(kind, "text_config", ("language_model.model.", "language_model."))


TOWER = Part(
    "siglip_vision_model",
    "vision_config",
    ("vision_tower.vision_model.", "model.vision_tower.vision_model.", "vision_tower.", "model.vision_tower."),
)
# By model_type of the whole, then by what a recipe asks for.
PARTS: dict[str, dict[str, Part]] = {
    "blip-2": {
        "text": Part(of=_blip_2_text),
        "image": Part("blip_2_vision_model", "vision_config", ("vision_model.",)),
    },
    "sam3": {"image": Part("sam3_vision_model", "vision_config", ("vision_encoder.",))},
    "sam3_video": {
        "image": Part("sam3_vision_model", "detector_config.vision_config", ("detector_model.vision_encoder.",))
    },
    "gemma3n": {
        "text": Part("gemma3n_text", "text_config", ("model.language_model.", "language_model.")),
        "image": Part(
            "gemma3n_vision", "vision_config", ("model.vision_tower.timm_model.", "vision_tower.timm_model.")
        ),
    },
    "gemma4": {"text": Part("gemma4_text", "text_config", ("model.language_model.", "language_model."))},
    "metaclip_2": {
        "text": Part("metaclip_2_text_model", "text_config", ("text_model.",)),
        "image": Part("metaclip_2_vision_model", "vision_config", ("vision_model.",)),
    },
    # A T5 is read without its decoder, except where the whole of it is asked for.
    **{kind: {"whole": Part("t5-whole")} for kind in ("t5", "mt5")},
    "t5gemma": {"text": Part("t5gemma-encoder", alone=lambda config: config.get("is_encoder_decoder", True) is False)},
    "t5gemma2": {"text": Part("t5gemma2-encoder")},
    "gemma3": {
        "text": Part("gemma3_text", "text_config", ("language_model.model.", "model.language_model."), ("score.",)),
        "image": TOWER,
    },
    "paligemma": {"text": Part(cut=_prompts), "image": TOWER},
    "siglip": {"image": Part("siglip_vision_model", "vision_config", ("vision_model.",), ("classifier.",))},
    **{
        kind: {
            "text": Part(f"{kind}_text", "text_config", ("model.language_model.", "language_model."), ("score.",)),
            "image": Part(f"{kind}_vision", "vision_config", ("model.visual.", "visual.")),
        }
        for kind in ("qwen3_5", "qwen3_5_moe")
    },
}


def of(folder: ModelFolder, wanted: str) -> Part | None:
    """Returns the part of a folder's model that a recipe asks for, or None for the whole.

    Args:
        folder: the model's.
        wanted: `model.part`; what a model without parts is by itself is not one of its parts.

    Raises:
        ModelError: if the model has parts, but not this one.
    """
    known = PARTS.get(str(folder.config.get("model_type")), {}) if folder.format == "hugging_face" else {}
    if alone := next((part for part in known.values() if part.alone(folder.config)), None):
        return alone
    if wanted in known:
        part = known[wanted]
        return part.of(folder.config) if part.of else part
    if wanted in ("auto", "whole") or "whole" in known or not known:
        return None
    raise ModelError(
        f"model.part: '{folder.handle}' is a {folder.config['model_type']}, of which kft reads no part for {wanted}. "
        f"Allowed: {', '.join([*known, 'whole'])}."
    )
