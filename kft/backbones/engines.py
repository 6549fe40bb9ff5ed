"""What turns strings into ids, without keras."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import normalizers, pre_tokenizers

from kft.errors import ModelError


class FastEngine:
    """The `tokenizers` library; its file is `tokenizer.json`."""

    kind = "tokenizers"

    def __init__(self, inner: tokenizers.Tokenizer) -> None:
        inner.no_truncation()
        inner.no_padding()
        self.inner = inner

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the ids of each text, with no special tokens."""
        return [found.ids for found in self.inner.encode_batch_fast(list(texts), add_special_tokens=False)]

    def places(self, texts: Sequence[str]) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """Returns the ids of each text, and where each token begins and ends in it, in characters."""
        found = self.inner.encode_batch(list(texts), add_special_tokens=False)
        return [(one.ids, one.offsets) for one in found]

    def definition(self) -> str:
        """Returns what `tokenizer.json` holds."""
        return str(self.inner.to_str())

    def save(self, folder: Path) -> None:
        """Writes `tokenizer.json`."""
        (folder / "tokenizer.json").write_text(self.definition(), encoding="utf8")

    def id(self, token: str) -> int | None:
        """Returns a token's id, or None."""
        found: int | None = self.inner.token_to_id(token)
        return found


class WordEngine(FastEngine):
    """The `tokenizers` library after `rjieba` has cut Chinese into words, as RoFormer's makers do.

    A word of the vocabulary is one token; of another one the characters are taken. `tokenizer.json` cannot say this: read by
    another program, it takes every character by itself.
    """

    kind = "words"

    def __init__(self, inner: tokenizers.Tokenizer) -> None:
        super().__init__(inner)
        self.written = str(inner.to_str())
        inner.pre_tokenizer = pre_tokenizers.PreTokenizer.custom(_Words(inner.get_vocab()))

    def definition(self) -> str:
        """Returns what `tokenizer.json` holds."""
        return self.written


class _Words:
    """Cuts a text where `rjieba` does, for the `tokenizers` library."""

    def __init__(self, vocabulary: dict[str, int]) -> None:
        try:
            import rjieba
        except ImportError:
            raise ModelError(
                "RoFormer's tokenizer cuts Chinese into words with rjieba, not installed here. Type: pip install rjieba; or "
                "give model.tokenizer, the folder of another tokenizer that the model was trained with."
            ) from None
        self.vocabulary, self.cut = vocabulary, rjieba.tokenize
        self.spaced = normalizers.BertNormalizer(
            clean_text=False, handle_chinese_chars=True, strip_accents=False, lowercase=False
        )

    def pre_tokenize(self, text: tokenizers.PreTokenizedString) -> None:
        """Cuts each part of a text."""
        text.split(self._split)

    def _split(self, number: int, text: tokenizers.NormalizedString) -> list[Any]:
        found = []
        for word, start, _ in self.cut(str(text), hmm=False):
            for part in [word] if word in self.vocabulary else self.spaced.normalize_str(word).split():
                found.append(text[start : start + len(part)])
                start += len(part)
        return found


class SentencePieceEngine:
    """The `sentencepiece` library; its file is `sentencepiece.model`.

    Attributes:
        shift: added to each id; XLM-RoBERTa keeps ids that the model file does not know of.
    """

    kind = "sentencepiece"

    def __init__(self, file: Path, shift: int = 0) -> None:
        try:
            import sentencepiece
        except ImportError:
            raise ModelError(
                f"The tokenizer '{file.name}' needs sentencepiece, not installed here. Type: pip install sentencepiece"
            ) from None
        self.file, self.shift = file, shift
        self.inner = sentencepiece.SentencePieceProcessor(model_file=str(file))

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the ids of each text, with no special tokens."""
        found: list[list[int]] = self.inner.encode(list(texts), out_type=int)
        if not self.shift:
            return found
        return [self._shifted(ids) for ids in found]

    def places(self, texts: Sequence[str]) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """Returns the ids of each text, and where each token begins and ends in it, in characters."""
        kind: Any = "immutable_proto"  # the one in which places count characters
        found = self.inner.encode(list(texts), out_type=kind)
        return [
            (self._shifted([piece.id for piece in one.pieces]), [(piece.begin, piece.end) for piece in one.pieces])
            for one in found
        ]

    def _shifted(self, ids: list[int]) -> list[int]:
        unknown_id = self.inner.unk_id()
        return [3 if i == unknown_id else i + self.shift for i in ids] if self.shift else ids

    def save(self, folder: Path) -> None:
        """Copies the model file."""
        shutil.copyfile(self.file, folder / "sentencepiece.model")

    def id(self, token: str) -> int | None:
        """Returns a token's id, or None."""
        found = self.inner.piece_to_id(token)
        return None if found == self.inner.unk_id() else found + self.shift


Engine = FastEngine | SentencePieceEngine


def read(kind: str, folder: Path, shift: int = 0) -> Engine:
    """Reads what an engine saved."""
    if kind == SentencePieceEngine.kind:
        return SentencePieceEngine(folder / "sentencepiece.model", shift)
    inner = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    return WordEngine(inner) if kind == WordEngine.kind else FastEngine(inner)
