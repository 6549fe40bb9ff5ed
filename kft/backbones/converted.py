"""Weights for KerasHub's converters, strictly: none is left over, and no place stays empty. Import after `backend.activate`.

KerasHub's own loader of Hugging Face folders says nothing of tensors that it leaves out, takes another tensor whose name ends
alike, and knows the names of models saved with a head only.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kft.backbones import filling
from kft.backbones.tensors import Tensors
from kft.errors import ModelError, listed

# What a task of kft does without: heads, layers below them, and tokens that hide parts of an image in pretraining.
HEADS = re.compile(
    r"(^|\.)(lm_head|score|classifier|cls_classifier|distillation_classifier|qa_outputs|contact_head|pooler|decoder"
    r"|summary|multiple_choice_head|vision_model\.head)\.|(^|\.)embeddings\.mask_token$"
)
BUFFERS = re.compile(
    r"(^|\.)(position_ids|inv_freq|relative_position_index|attn_mask|attn\.bias|attn\.masked_bias|rope_embeddings\..*)$"
)
BLOCKS = re.compile(r"(^|\.)(layers?|h|blocks)\.\d+\.")


class Whole(np.ndarray):
    """An array that keeps its precision: KerasHub's converter of Mistral would halve it, which costs digits."""

    def astype(self, *args: Any, **kwargs: Any) -> Any:
        """Returns the array as it is."""
        return self


class Reader:
    """Gives KerasHub's converters the tensors they ask for, and remembers which those were.

    Args:
        tensors: the weights.
        prefix: what a model with a head puts before the names of its backbone's weights.
        scales: factors on tensors, by KerasHub's names of them.
        offsets: what is added to them then.
        spare: names of tensors that may be left over.
    """

    def __init__(
        self,
        tensors: Tensors,
        prefix: str,
        scales: Mapping[str, float],
        offsets: Mapping[str, float] | None = None,
        spare: re.Pattern[str] | None = None,
    ) -> None:
        self._tensors, self._prefix, self._spare = tensors, prefix, spare or HEADS
        self._scales, self._offsets = scales, offsets or {}
        self.used: set[str] = set()
        self.preset = str(tensors.place)

    def get_tensor(self, name: str) -> np.ndarray:
        """Returns a tensor by the name that KerasHub knows it by.

        Raises:
            ModelError: if it is not there, which names it.
        """
        found = self._found(name)
        if found is None:
            raise ModelError(
                f"'{self._tensors.place}' has no weights for {name}. Give a folder with the whole model, as config.json says."
            )
        self.used.add(found)
        array = self._tensors[found]
        if name in self._scales:
            array = array * self._scales[name] + self._offsets.get(name, 0.0)
        return array.view(Whole)

    def port_weight(self, keras_variable: Any, hf_weight_key: str, hook_fn: Callable[..., Any] | None = None) -> None:
        """Gives a place its tensor, turned as the converter says; the names of the arguments are KerasHub's."""
        shape, array = list(keras_variable.shape), self.get_tensor(hf_weight_key)
        try:
            keras_variable.assign(np.asarray(array if hook_fn is None else hook_fn(array, shape)))
        except ValueError:
            raise ModelError(
                f"'{self._tensors.place}': {hf_weight_key} has the shape {tuple(array.shape)}, but config.json asks for "
                f"{tuple(shape)}, turned. Weights and config.json are of different models."
            ) from None

    def _found(self, name: str) -> str | None:
        bare = name.removeprefix(self._prefix)
        # The last one is what decoders with a head for answers have.
        names = [name, self._prefix + name, bare, f"transformer.{bare}"]
        if name == "lm_head.weight":
            # A model saved without its way back to tokens, or with that of its embeddings; no head of kft's reads it.
            names += ["model.embed_tokens.weight", "embed_tokens.weight"]
        # As transformers writes a vision tower since its version 5.
        names += [one.replace(".vision_tower.vision_model.", ".vision_tower.") for one in names]
        return next((found for one in names if (found := filling.stored_name(one, self._tensors)) is not None), None)

    def complain(self, *, all_blocks: bool, kind: str) -> None:
        """Raises a ModelError that lists what was not asked for and is neither a head's nor a buffer."""
        left = [name for name in self._tensors if name not in self.used and not self._known(name, all_blocks)]
        left = [name for name in left if self._tensors[name].size]
        if left:
            raise ModelError(
                f"'{self._tensors.place}' has weights that find no place in a {kind} backbone: {listed(left, 4)}. It is of "
                "another model, or of a variant that kft does not know."
            )

    def _known(self, name: str, all_blocks: bool) -> bool:
        return bool(self._spare.search(name) or BUFFERS.search(name) or (not all_blocks and BLOCKS.search(name)))


def fill(model: Any, converter: Any, config: dict[str, Any], reader: Reader, *, all_blocks: bool = True) -> None:
    """Has a converter of KerasHub's fill a model.

    Args:
        model: what is filled.
        converter: KerasHub's module for the family.
        config: `config.json`.
        reader: gives the tensors.
        all_blocks: whether blocks that the model does not have are an error.

    Raises:
        ModelError: if a tensor finds no place, or a place no tensor; the message lists them.
    """
    with _assigned() as seen:
        converter.convert_weights(model, reader, config)
    reader.complain(all_blocks=all_blocks, kind=str(config["model_type"]))
    empty = [variable.path for variable in model.trainable_weights if id(variable) not in seen]
    if empty:
        raise ModelError(
            f"'{Path(reader.preset)}' has no weights for {listed(empty, 4)}. Give a folder with the whole model."
        )


@contextlib.contextmanager
def _assigned() -> Iterator[set[int]]:
    """Notes which variables are given a value within: converters give some theirs past `port_weight`."""
    seen: set[int] = set()
    own = keras.Variable.assign

    def assign(self: Any, value: Any) -> Any:
        seen.add(id(self))
        return own(self, value)

    try:
        keras.Variable.assign = assign
        yield seen
    finally:
        keras.Variable.assign = own
