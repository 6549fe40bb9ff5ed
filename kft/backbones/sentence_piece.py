"""SentencePiece models that Hugging Face's folders hold, for the `tokenizers` library; nothing here loads keras.

What a family does to a text before SentencePiece sees it stands in its own code and not in the model's file (lower case for
ALBERT, white space for DeBERTa), as do its special tokens, which a text may spell out. Both are done here as transformers
does them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import normalizers, pre_tokenizers

from kft.backbones.tokenizer import around, surround

Pieces = list[tuple[str, float]]
UNIGRAM, CONTROL, USER_DEFINED = 1, 3, 4


@dataclass(frozen=True)
class Model:
    """What a file of SentencePiece holds.

    Attributes:
        pieces: each with its score, by id.
        special: those of the pieces that a text's own characters never make.
        unknown: the id of what is not among the pieces.
        charsmap: how characters are replaced beforehand; empty for not at all.
        kind: of model; UNIGRAM, or another number.
    """

    pieces: Pieces
    special: list[str]
    unknown: int
    charsmap: bytes
    kind: int


def read(file: Path) -> Model:
    """Reads a SentencePiece model: a message of Protocol Buffers.

    Raises:
        ValueError: if the file is none.
    """
    pieces, special, trained, charsmap = Pieces(), list[str](), dict[int, Any](), b""
    try:
        for number, value in _fields(file.read_bytes()):
            if number == 1:
                found = dict(_fields(value))
                pieces.append((found[1].decode(), struct.unpack("<f", found.get(2, bytes(4)))[0]))
                if found.get(3) in (CONTROL, USER_DEFINED):
                    special.append(pieces[-1][0])
            elif number == 2:
                trained = dict(_fields(value))
            elif number == 3:
                charsmap = dict(_fields(value)).get(2, b"")
    except (ValueError, KeyError, IndexError, AttributeError, TypeError, struct.error):
        pieces = []
    if not pieces:
        raise ValueError(f"'{file.name}' is no SentencePiece model")
    return Model(pieces, special, trained.get(40, 0), charsmap, trained.get(3, UNIGRAM))


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Gives number and value of each field of a message of Protocol Buffers."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        if key & 7 == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        size, at = _varint(data, at) if key & 7 == 2 else ({1: 8, 5: 4}[key & 7], at)
        if at + size > len(data):
            raise ValueError("cut off")
        yield key >> 3, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    found = shift = 0
    while True:
        byte = data[at]
        found |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return found, at


@dataclass(frozen=True)
class Style:
    """How a family goes about with a SentencePiece model.

    Attributes:
        single: what stands around a text, as `surround` has it.
        pair: what stands around two texts.
        special: its special tokens, beside the file's own and those that `pieces` adds.
        steps: what is done to a text first, given the folder's `tokenizer_config.json`.
        pieces: gives ids to the file's pieces.
        unknown: the id of what is not among them, where it is not the file's.
        words: whether a text is parted at white space of every kind.
        lstrip: of the special tokens those that take in the white space before them.
    """

    single: str
    pair: str
    special: Sequence[str]
    steps: Callable[[Mapping[str, Any], list[Any]], list[Any]] = lambda settings, charsmap: charsmap
    pieces: Callable[[Pieces, Mapping[str, Any]], Pieces] = lambda pieces, settings: pieces
    unknown: int | None = None
    words: bool = True
    lstrip: Sequence[str] = ()


def built(
    model: Model, style: Style, settings: Mapping[str, Any], added: Sequence[tokenizers.AddedToken]
) -> tokenizers.Tokenizer:
    """Returns the tokenizer that a family makes of a model.

    Args:
        model: from `read`; its kind must be UNIGRAM.
        style: the family's.
        settings: the folder's `tokenizer_config.json`.
        added: tokens that the folder adds to the model's.
    """
    pieces, own = style.pieces(model.pieces, settings), {piece for piece, _ in model.pieces}
    unknown = model.unknown if style.unknown is None else style.unknown
    inner = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, unk_id=unknown))
    charsmap = [normalizers.Precompiled(model.charsmap)] if model.charsmap else []
    inner.normalizer = normalizers.Sequence(style.steps(settings, charsmap))
    parts: list[Any] = [pre_tokenizers.WhitespaceSplit()] if style.words else []
    if settings.get("split_by_punct"):
        parts.append(pre_tokenizers.Punctuation(behavior="isolated"))
    inner.pre_tokenizer = pre_tokenizers.Sequence([*parts, pre_tokenizers.Metaspace()])
    inner.decoder = tokenizers.decoders.Metaspace()
    inner.add_tokens(list(added))
    special = (*model.special, *style.special, *(piece for piece, _ in pieces if piece not in own))
    inner.add_special_tokens(
        [
            tokenizers.AddedToken(token, special=True, normalized=False, lstrip=token in style.lstrip)
            for token in special
        ]
    )
    surround(inner, style.single, style.pair)
    return inner


def lacking(
    model: Model, style: Style, settings: Mapping[str, Any], added: Sequence[tokenizers.AddedToken]
) -> list[str]:
    """Returns which tokens a family sets around texts that neither a model nor its folder has; as `built` takes them."""
    there = {piece for piece, _ in style.pieces(model.pieces, settings)} | {token.content for token in added}
    return sorted(around(style.single, style.pair) - there)


QUOTES = [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]


def _albert(lowercase: bool, accents: bool) -> Callable[[Mapping[str, Any], list[Any]], list[Any]]:
    def steps(settings: Mapping[str, Any], charsmap: list[Any]) -> list[Any]:
        kept = settings.get("keep_accents", accents)
        lower = [normalizers.Lowercase()] if settings.get("do_lower_case", lowercase) else []
        return [*QUOTES, *([] if kept else [normalizers.NFKD(), normalizers.StripAccents()]), *lower, *charsmap]

    return steps


def _deberta(settings: Mapping[str, Any], charsmap: list[Any]) -> list[Any]:
    lower = [normalizers.Lowercase()] if settings.get("do_lower_case") else []
    white = normalizers.Replace(tokenizers.Regex(r"\s{2,}|[\n\r\t]"), " ")
    return [*lower, *charsmap, white, normalizers.NFC(), normalizers.Strip(left=False, right=True)]


def _with_sentinels(pieces: Pieces, settings: Mapping[str, Any]) -> Pieces:
    count = int(settings.get("extra_ids", 100))
    return [*pieces, *((f"<extra_id_{number}>", 0.0) for number in reversed(range(count)))]


def _xlm_roberta(pieces: Pieces, settings: Mapping[str, Any]) -> Pieces:
    first = [(token, 0.0) for token in ("<s>", "<pad>", "</s>", "<unk>")]
    return [*first, *pieces[3:], ("<mask>", 0.0)]


def _camembert(pieces: Pieces, settings: Mapping[str, Any]) -> Pieces:
    first = [(token, 0.0) for token in ("<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>")]
    return [*first, ("<unk>NOTUSED", -100.0), *pieces[1:], ("<mask>", 0.0)]


BERT = ("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1")
ROBERTA = ("<s> $A </s>", "<s> $A </s> </s> $B </s>")
OF_ROBERTA = ("<s>", "</s>", "<unk>", "<pad>", "<mask>")
OF_ALBERT = ("[CLS]", "[SEP]", "<unk>", "<pad>", "[MASK]")
OF_XLNET = ("<s>", "</s>", "<unk>", "<sep>", "<pad>", "<cls>", "<mask>", "<eop>", "<eod>")
T5 = Style("$A </s>", "$A </s> $B </s>", ("</s>", "<unk>", "<pad>"), pieces=_with_sentinels)
STYLES = {
    "albert": Style(*BERT, OF_ALBERT, _albert(lowercase=True, accents=False)),
    "camembert": Style(*ROBERTA, OF_ROBERTA, pieces=_camembert, unknown=3, lstrip=("<mask>",)),
    "deberta-v2": Style(*BERT, ("[CLS]", "[SEP]", "[UNK]", "[PAD]", "[MASK]"), _deberta, words=False),
    "fnet": Style(*BERT, OF_ALBERT, _albert(lowercase=False, accents=True)),
    "mt5": T5,
    "t5": T5,
    "xlm-roberta": Style(*ROBERTA, OF_ROBERTA, pieces=_xlm_roberta, unknown=3),
    "xlnet": Style(
        "$A <sep> <cls>:2",
        "$A <sep> $B:1 <sep>:1 <cls>:2",
        OF_XLNET,
        _albert(lowercase=False, accents=False),
        lstrip=("<mask>",),
    ),
}
CLASSES = {
    "Albert": "albert",
    "Camembert": "camembert",
    "DebertaV2": "deberta-v2",
    "FNet": "fnet",
    "MT5": "mt5",
    "T5": "t5",
    "XLMRoberta": "xlm-roberta",
    "XLNet": "xlnet",
}
