"""Text to token ids, without keras, so that a recipe can be checked before a backend loads."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from kft.backbones import engines, saved_model
from kft.backbones.engines import Engine, FastEngine, SentencePieceEngine, WordEngine
from kft.data.encoded import Ragged
from kft.errors import ModelError, unknown


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
            "cleaning": getattr(self.engine, "cleaning", ()),
            "template": asdict(self.template),
            "pad_id": self.pad_id,
            "unknown_id": self.unknown_id,
            "word_prefix": self.word_prefix,
            "digest": self.digest,
        }
        (folder / "preprocessing.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf8")


def read(folder: Path) -> Tokenizer:
    """Reads a tokenizer that `Tokenizer.save` wrote."""
    values = json.loads((folder / "preprocessing.json").read_text(encoding="utf8"))
    engine = engines.read(values.pop("kind"), folder, values.pop("shift"), values.pop("cleaning", ()))
    template: dict[str, Any] = {
        name: tuple(v) if isinstance(v, list) else v for name, v in values.pop("template").items()
    }
    return Tokenizer(engine=engine, template=Template(**template), **values)


def load(folder: Path) -> Tokenizer:
    """Loads the tokenizer of a Hugging Face or KerasHub folder.

    Args:
        folder: has `tokenizer.json`, `vocab.txt`, `vocab.json` with `merges.txt`, a SentencePiece model, what KerasHub's
            presets keep under `assets/tokenizer`, or a SavedModel with a vocabulary among its assets.

    Raises:
        ModelError: if there is none, it cannot be read, or it is of a kind kft does not know.
    """
    try:
        return _load(folder)
    except ModelError:
        raise
    except Exception as error:  # tokenizers raises nothing more special
        raise ModelError(
            f"Cannot read the tokenizer in '{folder}': {str(error).rstrip('.')}. Get its files again, or give "
            "model.tokenizer, a folder that has them whole."
        ) from None


def _load(folder: Path) -> Tokenizer:
    if saved_model.is_one(folder):
        folder = saved_model.folder_for(folder) or folder
    config = _json(folder / "tokenizer.json")
    if "class_name" in config:
        return _keras_hub(folder, config)
    if "model" in config:
        return _fast(tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")), folder)
    if (folder / "vocab.txt").exists():
        lowercase = _json(folder / "tokenizer_config.json").get("do_lower_case", True)
        return _word_piece(folder / "vocab.txt", bool(lowercase), _cuts_words(folder))
    if (folder / "vocab.json").exists() and (folder / "merges.txt").exists():
        return _byte_pair(folder / "vocab.json", folder / "merges.txt")
    for name, family in SENTENCE_PIECE_FILES.items():
        if (folder / name).exists():
            return _sentence_piece(folder / name, _family(folder) or family, _json(folder / "tokenizer_config.json"))
    found = ", ".join(sorted(entry.name for entry in folder.iterdir())[:12])
    raise ModelError(
        f"No tokenizer in '{folder}' (there: {found}). Expected tokenizer.json, vocab.txt, vocab.json with merges.txt, "
        "or a SentencePiece model; or give model.tokenizer, a folder that has one."
    )


SENTENCE_PIECE_FILES = {"spiece.model": "albert", "sentencepiece.bpe.model": "xlm-roberta", "spm.model": "deberta-v2"}


def _family(folder: Path) -> str:
    return str(_json(folder / "config.json").get("model_type", ""))


def _cuts_words(folder: Path) -> bool:
    """Says whether a folder's tokenizer is RoFormer's, which cuts Chinese into words; its files do not say it themselves."""
    named = (_json(folder / name).get("tokenizer_class") for name in ("tokenizer_config.json", "config.json"))
    return str(next(filter(None, named), "RoFormer" if _family(folder) == "roformer" else "")).startswith("RoFormer")


def _json(file: Path) -> dict[str, Any]:
    if not file.exists():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf8"))
    except (ValueError, OSError) as error:
        raise ModelError(f"Cannot read '{file}': {error}.") from None
    return found if isinstance(found, dict) else {}


def _digest(*parts: Any) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part if isinstance(part, bytes) else json.dumps(part, sort_keys=True).encode())
    return digest.hexdigest()


def _make(engine: Engine, template: Template, pad: int, unk: int, prefix: str, *key: Any) -> Tokenizer:
    return Tokenizer(engine, template, pad, unk, prefix, _digest(asdict(template), pad, unk, prefix, engine.kind, *key))


def _fast(inner: tokenizers.Tokenizer, folder: Path) -> Tokenizer:
    template, prefix = _probe(inner), " " if "ByteLevel" in str(inner.pre_tokenizer) else ""
    engine = WordEngine(inner) if _cuts_words(folder) else FastEngine(inner)
    special = _json(folder / "special_tokens_map.json") | _json(folder / "tokenizer_config.json")
    pad = _special(engine, special.get("pad_token"), ("[PAD]", "<pad>", "<|endoftext|>"))
    unk = _special(engine, special.get("unk_token"), ("[UNK]", "<unk>", "<|endoftext|>"))
    return _make(engine, template, pad, unk, prefix, engine.definition())


def _special(engine: Engine, named: Any, usual: Sequence[str]) -> int:
    name = named.get("content") if isinstance(named, dict) else named
    for token in (name, *usual):
        found = engine.id(token) if token else None
        if found is not None:
            return found
    return 0


def _probe(inner: tokenizers.Tokenizer) -> Template:
    """Reads the template off an encoded pair: what belongs to neither text is special."""
    pair = inner.encode("a", "b")
    owners = pair.sequence_ids
    first = [i for i, owner in enumerate(owners) if owner == 0]
    second = [i for i, owner in enumerate(owners) if owner == 1]
    if not first or not second:
        return Template()
    middle = range(first[-1] + 1, second[0])
    return Template(
        prefix=tuple(pair.ids[: first[0]]),
        between=tuple(pair.ids[i] for i in middle),
        suffix=tuple(pair.ids[second[-1] + 1 :]),
        between_first=sum(pair.type_ids[i] == 0 for i in middle),
        segments=pair.type_ids[second[0]] == 1,
        apart=pair.type_ids[second[-1] + 1 :].count(2),
    )


def _word_piece(file: Path, lowercase: bool, words: bool = False) -> Tokenizer:
    inner = tokenizers.BertWordPieceTokenizer(str(file), lowercase=lowercase, handle_chinese_chars=not words)._tokenizer
    engine = WordEngine(inner) if words else FastEngine(inner)
    ids = [engine.id(token) for token in ("[CLS]", "[SEP]", "[PAD]", "[UNK]")]
    if None in ids:
        raise ModelError(f"The vocabulary '{file}' lacks one of [CLS], [SEP], [PAD], [UNK].")
    start, end, pad, unk = (found or 0 for found in ids)
    return _make(engine, Template((start,), (end,), (end,), 1, True), pad, unk, "", engine.definition())


def _byte_pair(vocabulary: Path, merges: Path) -> Tokenizer:
    engine = FastEngine(tokenizers.ByteLevelBPETokenizer(str(vocabulary), str(merges))._tokenizer)
    start, end = engine.id("<s>"), engine.id("</s>")
    template = Template() if start is None or end is None else Template((start,), (end, end), (end,), 1)
    usual = ("<pad>", "<|endoftext|>")
    pad, unk = _special(engine, None, usual), _special(engine, None, ("<unk>", "<|endoftext|>"))
    special = [t for t in ("<s>", "</s>", "<pad>", "<unk>", "<mask>", "<|endoftext|>") if engine.id(t) is not None]
    engine.inner.add_special_tokens(special)
    return _make(engine, template, pad, unk, " ", engine.definition())


def _sentence_piece(file: Path, family: str, options: Mapping[str, Any] | None = None) -> Tokenizer:
    key = file.read_bytes()
    if family == "xlnet":
        return _xlnet(file, options or {})
    if family in ("xlm-roberta", "xlm_roberta"):
        engine = SentencePieceEngine(file, shift=1)
        return _make(engine, Template((0,), (2, 2), (2,), 1), 1, 3, "", key, family)
    engine = SentencePieceEngine(file)
    start, end = engine.id("[CLS]"), engine.id("[SEP]")
    pad = _special(engine, None, ("[PAD]", "<pad>"))
    unk = engine.inner.unk_id()
    if start is None or end is None:
        stop = engine.id("</s>")
        ends = () if stop is None else (stop,)
        between, first = (ends, len(ends)) if family in ("t5", "mt5") else ((), 0)
        return _make(engine, Template((), between, ends, first), pad, unk, "", key, family)
    return _make(engine, Template((start,), (end,), (end,), 1, True), pad, unk, "", key, family)


def _xlnet(file: Path, options: Mapping[str, Any]) -> Tokenizer:
    cleaning = {"quotes": True, "accents": not options.get("keep_accents"), "case": options.get("do_lower_case")}
    engine = SentencePieceEngine(file, cleaning=tuple(name for name, wanted in cleaning.items() if wanted))
    ids = [engine.id(token) for token in ("<sep>", "<cls>", "<pad>")]
    if None in ids:
        raise ModelError(f"The vocabulary '{file}' lacks one of <sep>, <cls>, <pad>, which XLNet needs.")
    end, whole, pad = (found or 0 for found in ids)
    template = Template((), (end,), (end, whole), 1, True, 1)
    return _make(engine, template, pad, engine.inner.unk_id(), "", file.read_bytes(), engine.cleaning)


def _keras_hub(folder: Path, config: dict[str, Any]) -> Tokenizer:
    name = str(config["class_name"])
    assets = folder / "assets" / "tokenizer"
    if name not in KERAS_HUB:
        raise ModelError(
            unknown("KerasHub tokenizer", name, KERAS_HUB, "Give model.tokenizer, a folder with tokenizer.json.")
        )
    return KERAS_HUB[name](assets, config.get("config", {}))


def _asset(assets: Path, name: str) -> Path:
    file = assets / name
    if not file.is_file():
        raise ModelError(
            f"The tokenizer of the KerasHub preset has no file '{file}'. Get the preset again, or give model.tokenizer, "
            "a folder that has one."
        )
    return file


def _hub_word_piece(assets: Path, config: dict[str, Any]) -> Tokenizer:
    return _word_piece(_asset(assets, "vocabulary.txt"), bool(config.get("lowercase", False)))


def _hub_byte_pair(assets: Path, config: dict[str, Any]) -> Tokenizer:
    return _byte_pair(_asset(assets, "vocabulary.json"), _asset(assets, "merges.txt"))


def _hub_sentence_piece(family: str) -> Callable[[Path, dict[str, Any]], Tokenizer]:
    return lambda assets, config: _sentence_piece(_asset(assets, "vocabulary.spm"), family)


KERAS_HUB: dict[str, Callable[[Path, dict[str, Any]], Tokenizer]] = {
    **dict.fromkeys(("BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer"), _hub_word_piece),
    **dict.fromkeys(("RobertaTokenizer", "GPT2Tokenizer", "BartTokenizer", "OPTTokenizer"), _hub_byte_pair),
    "AlbertTokenizer": _hub_sentence_piece("albert"),
    "DebertaV3Tokenizer": _hub_sentence_piece("deberta"),
    "FNetTokenizer": _hub_sentence_piece("fnet"),
    "XLMRobertaTokenizer": _hub_sentence_piece("xlm_roberta"),
}


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
