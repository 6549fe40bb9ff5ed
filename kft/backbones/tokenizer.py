"""Text to token ids, without keras, so that a recipe can be checked before a backend loads."""

from __future__ import annotations

import json
from array import array
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from kft.backbones import engines
from kft.backbones.engines import Engine
from kft.data.encoded import Ragged


@dataclass(frozen=True)
class Template:
    """The special tokens around one or two texts.

    Attributes:
        prefix: ids before the first text.
        between: ids between two texts.
        suffix: ids after the last text.
        between_first: how many of `between` belong to the first text's segment.
        segments: whether the second text has segment id 1 (else all are 0).
        apart: how many tokens at the end of `suffix` have segment id 2.
    """

    prefix: tuple[int, ...] = ()
    between: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()
    between_first: int = 0
    segments: bool = False
    apart: int = 0

    def overhead(self, texts: int) -> int:
        """Returns how many special tokens stand around so many texts."""
        return len(self.prefix) + len(self.suffix) + (len(self.between) if texts == 2 else 0)

    def segment_starts(self, second: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Returns where rows' segments but the first one start.

        Args:
            second: where each row's second text starts; its length where it has none, shape (rows,).
            lengths: of the rows, in tokens.

        Returns:
            int32 of shape (rows,), or of shape (rows, 2) where tokens at the end have segment id 2.
        """
        last = lengths - self.apart
        found = np.stack([np.minimum(second, last), last], axis=1) if self.apart else second
        return found.astype(np.int32)


@dataclass(frozen=True)
class Tokenizer:
    """Token ids of texts and of words, and the special tokens around them.

    Attributes:
        engine: what turns strings into ids.
        template: the special tokens around one or two texts.
        pad_id: the id that fills up a batch.
        unknown_id: the id of a word that has no tokens of its own.
        word_prefix: what stands before a word that is tokenized alone, as byte-level BPE wants it.
        digest: sha256 of what defines it; part of the key of encoded data.
    """

    engine: Engine
    template: Template
    pad_id: int
    unknown_id: int
    word_prefix: str
    digest: str

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the ids of each text, whole, with no special tokens."""
        return self.engine.encode(texts)

    def tokenize_with_offsets(self, texts: Sequence[str]) -> list[tuple[list[int], np.ndarray]]:
        """Returns for each text its ids, and where each token begins and ends in it.

        Returns:
            Places are in characters, int32, shape (tokens, 2); white space around a token is no part of it.
        """
        return [
            (ids, _trimmed(text, places)) for text, (ids, places) in zip(texts, self.engine.places(texts), strict=True)
        ]

    def tokenize_words(self, sentences: Sequence[Sequence[str]]) -> list[list[list[int]]]:
        """Returns for each sentence the ids of each word; a word without tokens gets the unknown id."""
        vocabulary = sorted({word for sentence in sentences for word in sentence})
        found = self.engine.encode([self.word_prefix + word for word in vocabulary])
        ids = {word: tokens or [self.unknown_id] for word, tokens in zip(vocabulary, found, strict=True)}
        return [[ids[word] for word in sentence] for sentence in sentences]

    def save(self, folder: Path) -> None:
        """Writes the tokenizer's files into a folder, from which `read` takes them."""
        folder.mkdir(parents=True, exist_ok=True)
        self.engine.save(folder)
        values = {
            "kind": self.engine.kind,
            "shift": getattr(self.engine, "shift", 0),
            "template": asdict(self.template),
            "pad_id": self.pad_id,
            "unknown_id": self.unknown_id,
            "word_prefix": self.word_prefix,
            "digest": self.digest,
        }
        (folder / "preprocessing.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf8")


def _trimmed(text: str, places: Sequence[tuple[int, int]]) -> np.ndarray:
    found = np.asarray(places, np.int32).reshape(-1, 2)
    for place in found:
        while place[0] < place[1] and text[place[0]].isspace():
            place[0] += 1
        while place[0] < place[1] and text[place[1] - 1].isspace():
            place[1] -= 1
    return found


def read(folder: Path) -> Tokenizer:
    """Reads a tokenizer that `Tokenizer.save` wrote."""
    values = json.loads((folder / "preprocessing.json").read_text(encoding="utf8"))
    engine = engines.read(values.pop("kind"), folder, values.pop("shift"))
    template: dict[str, Any] = {
        name: tuple(v) if isinstance(v, list) else v for name, v in values.pop("template").items()
    }
    return Tokenizer(engine=engine, template=Template(**template), **values)


def surround(inner: tokenizers.Tokenizer, single: str, pair: str) -> None:
    """Has special tokens stand around texts.

    Args:
        inner: knows the tokens.
        single: what stands around a text, `$A`; a number after a colon is the segment of what stands before it, else 0.
        pair: what stands around two texts, `$A` and `$B`.
    """
    tokens = [(token, inner.token_to_id(token)) for token in sorted(around(single, pair))]
    inner.post_processor = tokenizers.processors.TemplateProcessing(single=single, pair=pair, special_tokens=tokens)


def around(*templates: str) -> set[str]:
    """Returns the special tokens of templates as `surround` takes them."""
    return {part.partition(":")[0] for template in templates for part in template.split()} - {"$A", "$B"}


def truncated_lengths(first: int, second: int, room: int) -> tuple[int, int]:
    """Returns how many tokens two texts keep when together they may have `room`, the longer one giving first.

    The rule of the `tokenizers` library's `longest_first`.
    """
    if first + second <= room:
        return first, second
    short, long = sorted((first, second))
    long = long if short > room else max(short, room - short)
    if short + long > room:
        short, long = room // 2, room - room // 2
    return (short, long) if first <= second else (long, short)


def pack(
    tokenizer: Tokenizer, columns: Sequence[Sequence[str]], sequence_length: int
) -> tuple[Ragged, np.ndarray, np.ndarray]:
    """Encodes rows of one or two texts with their special tokens, cut to a length.

    Args:
        tokenizer: gives ids and special tokens.
        columns: one or two columns of texts.
        sequence_length: most tokens a row may have.

    Returns:
        ids of each row (int32), where each row's second segment starts (int32; the row's length if it has none; with where
        the third one starts, if the tokenizer has one), and each row's length before it was cut (int32).
    """
    template, room = tokenizer.template, sequence_length - tokenizer.template.overhead(len(columns))
    tokens = [tokenizer.tokenize(column) for column in columns]
    every, lengths, starts, whole = array("i"), [], [], []
    for parts in zip(*tokens, strict=True):
        whole.append(sum(map(len, parts)) + template.overhead(len(columns)))
        if len(parts) == 1:
            ids = [*template.prefix, *parts[0][:room], *template.suffix]
            start = len(ids)
        else:
            keep, keep_second = truncated_lengths(len(parts[0]), len(parts[1]), room)
            head = [*template.prefix, *parts[0][:keep]]
            ids = [*head, *template.between, *parts[1][:keep_second], *template.suffix]
            start = len(head) + template.between_first if template.segments else len(ids)
        every.extend(ids)
        lengths.append(len(ids))
        starts.append(start)
    rows = Ragged.of_lengths(np.array(every, np.int32), np.array(lengths, np.int64))
    found = template.segment_starts(np.array(starts, np.int32), np.array(lengths, np.int32))
    return rows, found, np.asarray(whole, np.int32)
