"""GGUF files of Llama-type models, put once into Hugging Face's layout, in the cache.

The format is ggml's (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md); quantized weights become float32, tensor by
tensor, so that no more than one is in memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import re
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from kft.backbones.ggml import KINDS, Kind
from kft.errors import ModelError, unknown
from kft.fetch import cache_folder
from kft.rundir import make_folder

SUFFIX = ".gguf"
_MOST_DIMENSIONS = 4
SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
STRING, ARRAY = 8, 9


@dataclass(frozen=True)
class Tensor:
    """Where a tensor lies in a file.

    Attributes:
        shape: the slowest axis first, as NumPy has it.
        kind: how its numbers are stored.
        start: its first byte.
    """

    shape: tuple[int, ...]
    kind: Kind
    start: int

    @property
    def size(self) -> int:
        """Its length in bytes."""
        return int(np.prod(self.shape, dtype=np.int64)) // self.kind.numbers * self.kind.size


class _Cursor:
    """Reads the head of a file, and nothing behind its end."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.place = data, 0

    def take(self, form: str) -> Any:
        found = struct.unpack_from(form, self.data, self.place)[0]
        self.place += struct.calcsize(form)
        return found

    def text(self) -> str:
        length = self.take("<Q")
        if length > len(self.data) - self.place:
            raise ValueError("a name is longer than the file")
        self.place += length
        return self.data[self.place - length : self.place].decode("utf8", "replace")

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.text()
        if kind != ARRAY:
            return self.take(SCALARS[kind])
        inner, length = self.take("<I"), self.take("<Q")
        if length > len(self.data) - self.place:
            raise ValueError("a list is longer than the file")
        return [self.value(inner) for _ in range(length)]


class File:
    """A GGUF file, its weights left on disk.

    Args:
        path: the file.

    Attributes:
        facts: what it says of itself.
        tensors: where each tensor lies.

    Raises:
        ModelError: if it is none, is cut off, or has weights in a form kft does not know.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as stream:
                self._data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
            self.facts, self.tensors = self._head()
        except ModelError:
            raise
        except (ValueError, KeyError, struct.error, OverflowError) as error:
            raise ModelError(f"'{path}' is no GGUF file, or is cut off: {error}. Get the file again.") from None

    def _head(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        cursor = _Cursor(self._data)
        if self._data[:4] != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        cursor.place = 4
        version, count, facts = cursor.take("<I"), cursor.take("<Q"), cursor.take("<Q")
        if version not in (2, 3):
            raise ValueError(f"version {version}, where kft knows 2 and 3")
        known = {}
        for _ in range(facts):
            name = cursor.text()
            known[name] = cursor.value(cursor.take("<I"))
        listed = [self._tensor(cursor) for _ in range(count)]
        alignment = int(known.get("general.alignment", 32))
        begin = -(-cursor.place // alignment) * alignment
        found = {name: Tensor(shape, kind, begin + offset) for name, shape, kind, offset in listed}
        for name, tensor in found.items():
            if tensor.start + tensor.size > len(self._data):
                raise ValueError(f"{name} ends behind its end")
        return known, found

    def _tensor(self, cursor: _Cursor) -> tuple[str, tuple[int, ...], Kind, int]:
        name, dimensions = cursor.text(), cursor.take("<I")
        if dimensions > _MOST_DIMENSIONS:
            raise ValueError(f"{name} has {dimensions} axes")
        shape = tuple(cursor.take("<Q") for _ in range(dimensions))[::-1]
        number, offset = cursor.take("<I"), cursor.take("<Q")
        if number not in KINDS:
            raise ModelError(
                f"'{self.path}' has {name} in ggml's type {number}, which kft does not know; known are "
                f"{', '.join(kind.name for kind in KINDS.values())}. Take the model in one of these."
            )
        return name, shape, KINDS[number], offset

    def __getitem__(self, name: str) -> np.ndarray:
        """Returns a tensor, float32."""
        tensor = self.tensors[name]
        raw = np.frombuffer(self._data, np.uint8, tensor.size, tensor.start)
        found: np.ndarray = tensor.kind.read(raw.reshape(-1, tensor.kind.size)).reshape(tensor.shape)
        return found

    def close(self) -> None:
        """Lets the file go; arrays that were read stay."""
        with contextlib.suppress(BufferError):
            self._data.close()


NAMES = (
    (r"token_embd\.weight", "model.embed_tokens.weight"),
    (r"output_norm\.weight", "model.norm.weight"),
    (r"output\.weight", "lm_head.weight"),
    (r"blk\.(\d+)\.attn_norm\.weight", r"model.layers.\1.input_layernorm.weight"),
    (r"blk\.(\d+)\.ffn_norm\.weight", r"model.layers.\1.post_attention_layernorm.weight"),
    (r"blk\.(\d+)\.attn_([qkv])\.weight", r"model.layers.\1.self_attn.\2_proj.weight"),
    (r"blk\.(\d+)\.attn_output\.weight", r"model.layers.\1.self_attn.o_proj.weight"),
    (r"blk\.(\d+)\.ffn_(gate|up|down)\.weight", r"model.layers.\1.mlp.\2_proj.weight"),
)


def config(file: File) -> dict[str, Any]:
    """Returns `config.json` of a Llama-type model.

    Raises:
        ModelError: if the model is of another type, or a measure is missing.
    """
    facts, kind = file.facts, str(file.facts.get("general.architecture"))
    if kind != "llama":
        raise ModelError(unknown("general.architecture of the GGUF file", kind, ["llama"]))
    if facts.get("llama.expert_count"):
        raise ModelError(
            f"'{file.path}' is a mixture of experts, which kft does not read from GGUF. Give its hf:// folder."
        )
    try:
        heads = int(facts["llama.attention.head_count"])
        return {
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            "vocab_size": file.tensors["token_embd.weight"].shape[0],
            "hidden_size": int(facts["llama.embedding_length"]),
            "intermediate_size": int(facts["llama.feed_forward_length"]),
            "num_hidden_layers": int(facts["llama.block_count"]),
            "num_attention_heads": heads,
            "num_key_value_heads": int(facts.get("llama.attention.head_count_kv", heads)),
            "max_position_embeddings": int(facts["llama.context_length"]),
            "rms_norm_eps": float(facts["llama.attention.layer_norm_rms_epsilon"]),
            "rope_theta": float(facts.get("llama.rope.freq_base", 10000.0)),
            "hidden_act": "silu",
            "tie_word_embeddings": "output.weight" not in file.tensors,
            "bos_token_id": facts.get("tokenizer.ggml.bos_token_id"),
            "eos_token_id": facts.get("tokenizer.ggml.eos_token_id"),
        }
    except KeyError as error:
        raise ModelError(f"'{file.path}' lacks {error}. Get the file again.") from None


def weights(file: File, fields: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...], Callable[[], np.ndarray]]]:
    """Gives each weight under Hugging Face's name, with its shape and what reads it.

    Raises:
        ModelError: if a tensor has no place in a Llama.
    """
    for name, tensor in file.tensors.items():
        if name == "rope_freqs.weight":
            raise ModelError(f"'{file.path}' stretches its positions (rope_freqs), which kft does not read from GGUF.")
        found = next((re.sub(old, new, name) for old, new in NAMES if re.fullmatch(old, name)), None)
        if found is None:
            raise ModelError(
                f"'{file.path}' has {name}, which finds no place in a Llama. It is of a variant kft does not know."
            )
        heads = fields["num_attention_heads"] if ".attn_q." in name else fields["num_key_value_heads"]
        turned = ".attn_q." in name or ".attn_k." in name
        yield found, tensor.shape, _reader(file, name, heads if turned else 0)


def _reader(file: File, name: str, heads: int) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        array = file[name]
        if not heads:
            return array
        # ggml turns neighbouring numbers of a head, Hugging Face the two halves of it.
        parted = array.reshape(heads, array.shape[0] // heads // 2, 2, array.shape[1])
        return parted.swapaxes(1, 2).reshape(array.shape)

    return read


DIGITS = tokenizers.pre_tokenizers.Digits(individual_digits=True)
BYTES = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
# What parts a text before the merges, by ggml's name of it.
PARTERS = {
    "default": BYTES,
    "gpt-2": BYTES,
    "smollm": tokenizers.pre_tokenizers.Sequence([DIGITS, BYTES]),
}
CONTROL, OWN = 3, 4  # kinds of tokens that no text is cut into


def tokenizer(file: File) -> tokenizers.Tokenizer:
    """Returns the tokenizer that a file has.

    Raises:
        ModelError: if it has none, or one of a kind kft does not know.
    """
    facts, kind = file.facts, str(file.facts.get("tokenizer.ggml.model"))
    makers = {"gpt2": _byte_level, "llama": _sentence_piece}
    if kind not in makers:
        raise ModelError(unknown("tokenizer.ggml.model of the GGUF file", kind, makers))
    tokens = list(facts["tokenizer.ggml.tokens"])
    made = makers[kind](facts, tokens)
    kinds = facts.get("tokenizer.ggml.token_type") or []
    special = [token for token, number in zip(tokens, kinds, strict=False) if number in (CONTROL, OWN)]
    made.add_special_tokens([tokenizers.AddedToken(token, normalized=False, special=True) for token in special])
    return made


def _byte_level(facts: Mapping[str, Any], tokens: Sequence[str]) -> tokenizers.Tokenizer:
    parts = str(facts.get("tokenizer.ggml.pre", "default"))
    if parts not in PARTERS:
        raise ModelError(unknown("tokenizer.ggml.pre of the GGUF file", parts, PARTERS))
    merges = [tuple(merge.split(" ", 1)) for merge in facts["tokenizer.ggml.merges"]]
    made = tokenizers.Tokenizer(tokenizers.models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    made.pre_tokenizer = PARTERS[parts]
    made.decoder = tokenizers.decoders.ByteLevel()
    return made


def _sentence_piece(facts: Mapping[str, Any], tokens: Sequence[str]) -> tokenizers.Tokenizer:
    """Returns SentencePiece's BPE: of two neighbours that make a token, those with the highest score are joined first."""
    scores, place = facts["tokenizer.ggml.scores"], {token: i for i, token in enumerate(tokens)}
    pairs = []
    for number, token in enumerate(tokens):
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in place and right in place:
                pairs.append((-scores[number], place[left], place[right], left, right))
    unknown_token = tokens[int(facts.get("tokenizer.ggml.unknown_token_id", 0))]
    model = tokenizers.models.BPE(
        place, [pair[3:] for pair in sorted(pairs)], unk_token=unknown_token, fuse_unk=True, byte_fallback=True
    )
    made = tokenizers.Tokenizer(model)
    steps = tokenizers.normalizers
    begins = [steps.Prepend("▁")] if facts.get("tokenizer.ggml.add_space_prefix", True) else []
    made.normalizer = steps.Sequence([*begins, steps.Replace(" ", "▁")])
    back = tokenizers.decoders
    made.decoder = back.Sequence([back.Replace("▁", " "), back.ByteFallback(), back.Fuse(), back.Strip(" ", 1, 0)])
    return made


def _tokens(file: File) -> dict[str, Any]:
    """Returns `tokenizer_config.json`: the special tokens by name."""
    tokens = file.facts["tokenizer.ggml.tokens"]
    found = {}
    for name, field in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        number = file.facts.get(f"tokenizer.ggml.{field}_token_id")
        if number is not None and number < len(tokens):
            found[f"{name}_token"] = tokens[number]
    template = file.facts.get("tokenizer.chat_template")
    more = {"chat_template": template} if template else {}
    return {"tokenizer_class": "PreTrainedTokenizerFast", **found, **more}


def folder_for(path: Path) -> Path:
    """Returns the cached folder of a GGUF file in Hugging Face's layout, which is made where it is not there.

    Raises:
        ModelError: if the file is broken, or its model or tokenizer is of a kind kft does not know.
    """
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    place = cache_folder() / "published" / f"gguf-{digest[:32]}"
    if not (place / "config.json").is_file():
        make_folder(place, lambda temporary: _convert(path, temporary))
    return place


def _convert(path: Path, place: Path) -> None:
    file = File(path)
    try:
        fields = config(file)
        made = tokenizer(file)
        words = made.get_vocab_size(with_added_tokens=True)
        if words > fields["vocab_size"]:
            raise ModelError(f"'{path}': the tokenizer has {words} tokens, the embedding {fields['vocab_size']} rows.")
        write(place / "model.safetensors", list(weights(file, fields)))
    finally:
        file.close()
    made.save(str(place / "tokenizer.json"))
    for name, values in (("tokenizer_config.json", _tokens(file)), ("config.json", fields)):
        (place / name).write_text(json.dumps(values, indent=2), encoding="utf8")


def write(path: Path, tensors: Sequence[tuple[str, tuple[int, ...], Callable[[], np.ndarray]]]) -> None:
    """Writes float32 tensors as safetensors, one after the other, where the library wants them all at once.

    The format: https://huggingface.co/docs/safetensors.

    Args:
        path: the new file.
        tensors: name, shape and reader of each.
    """
    head: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape, _ in tensors:
        begin, end = end, end + 4 * int(np.prod(shape, dtype=np.int64))
        head[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(head, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for _, _, read in tensors:
            stream.write(np.ascontiguousarray(read(), "<f4").data)
