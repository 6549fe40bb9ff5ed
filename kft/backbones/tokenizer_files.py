"""The tokenizer that a folder holds, whichever way it was published; nothing here loads keras."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import tokenizers

from kft.backbones import saved_model, sentence_piece, vocabularies
from kft.backbones.engines import Engine, FastEngine, SentencePieceEngine, WordEngine
from kft.backbones.tokenizer import Template, Tokenizer
from kft.backbones.vocabularies import content, cuts_words
from kft.errors import ModelError, unknown

SENTENCE_PIECE_FILES = {"spiece.model": "albert", "sentencepiece.bpe.model": "xlm-roberta", "spm.model": "deberta-v2"}
USUAL = {
    "pad_token": ("[PAD]", "<pad>", "<|padding|>", "<|endoftext|>"),
    "unk_token": ("[UNK]", "<unk>", "<|endoftext|>"),
}


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
    settings = _settings(folder)
    if "model" in config:
        return _fast(tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")), settings)
    inner = _slow(folder, settings)
    if inner is not None:
        return _fast(inner, settings)
    found = ", ".join(sorted(entry.name for entry in folder.iterdir())[:12])
    raise ModelError(
        f"No tokenizer in '{folder}' (there: {found}). Expected tokenizer.json, vocab.txt, vocab.json with merges.txt, "
        "or a SentencePiece model; or give model.tokenizer, a folder that has one."
    )


def _slow(folder: Path, settings: Mapping[str, Any]) -> tokenizers.Tokenizer | None:
    """Returns the tokenizer of a folder as they were before `tokenizer.json`, or None where there is none."""
    added = _added(folder, settings)
    if (folder / "vocab.txt").exists():
        inner = vocabularies.of_lines(folder / "vocab.txt", settings, added)
    elif (folder / "vocab.json").exists() and (folder / "merges.txt").exists():
        vocabularies.check(folder / "vocab.json", vocabularies.BYTE_PAIR, settings)
        inner = vocabularies.byte_pair(folder / "vocab.json", folder / "merges.txt", settings, added)
    elif (name := next((name for name in SENTENCE_PIECE_FILES if (folder / name).exists()), None)) is not None:
        inner = _sentence_piece(folder / name, settings, added)
    else:
        return None
    for number, token in added.items():
        if (found := inner.token_to_id(token.content)) != number:
            raise ModelError(
                f"'{folder}' adds the token {token.content!r} with the id {number}, but after its vocabulary it gets {found}. "
                "Its files are of different models; get them again."
            )
    return inner


def _settings(folder: Path) -> dict[str, Any]:
    """Returns what a folder says of its tokenizer, and the family of its model, empty where it is not said."""
    found = _json(folder / "special_tokens_map.json") | _json(folder / "tokenizer_config.json")
    config = _json(folder / "config.json")
    named = found.get("tokenizer_class") or config.get("tokenizer_class")
    return {**found, "tokenizer_class": named, "model_type": config.get("model_type", "")}


def _added(folder: Path, settings: Mapping[str, Any]) -> dict[int, tokenizers.AddedToken]:
    """Returns the tokens by id that a folder adds to its vocabulary."""
    special = [content(settings.get(name)) for name in vocabularies.NAMED]
    found = {int(number): values for number, values in (settings.get("added_tokens_decoder") or {}).items()} or {
        number: {"content": token, "normalized": token not in special, "special": token in special}
        for token, number in _json(folder / "added_tokens.json").items()
    }
    return {number: tokenizers.AddedToken(**found[number]) for number in sorted(found)}


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
    return Tokenizer(engine, template, pad, unk, prefix, _digest(asdict(template), pad, unk, prefix, *key))


def _fast(inner: tokenizers.Tokenizer, settings: Mapping[str, Any]) -> Tokenizer:
    engine = FastEngine(inner)  # before the probe: it takes off the file's own cutting and filling up
    template, prefix = _probe(inner), " " if "ByteLevel" in str(inner.pre_tokenizer) else ""
    pad, unk = (_special(inner, settings.get(name), usual) for name, usual in USUAL.items())
    if cuts_words(settings):
        engine = WordEngine(inner)
    return _make(engine, template, pad, unk, prefix, engine.kind, engine.definition())


def _special(inner: tokenizers.Tokenizer, named: Any, usual: Sequence[str]) -> int:
    """Returns the id of the token a folder names, or of a usual one: a special token, or else any."""
    special = [token.content for token in inner.get_added_tokens_decoder().values()]
    for token in (content(named), *(token for token in usual if token in special), *usual):
        found: int | None = inner.token_to_id(token) if token else None
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


def _sentence_piece(
    file: Path, settings: Mapping[str, Any], added: Mapping[int, tokenizers.AddedToken]
) -> tokenizers.Tokenizer:
    model, styles, name = sentence_piece.read(file), sentence_piece.STYLES, vocabularies.named(settings)
    vocabularies.check(file, sentence_piece.CLASSES, settings)
    family = sentence_piece.CLASSES[name] if name else str(settings["model_type"] or SENTENCE_PIECE_FILES[file.name])
    if family not in styles:
        raise ModelError(
            unknown(
                "family with a SentencePiece model",
                family,
                styles,
                "Give model.tokenizer, a folder with tokenizer.json.",
            )
        )
    if model.kind != sentence_piece.UNIGRAM:
        raise ModelError(
            f"'{file}' is not a Unigram model, as {family} has it. Give model.tokenizer, a folder with tokenizer.json."
        )
    tokens = list(added.values())
    if lacking := sentence_piece.lacking(model, styles[family], settings, tokens):
        raise ModelError(
            f"'{file}' lacks {', '.join(lacking)}, which {family} sets around a text. If it is of another family, name that "
            "one's tokenizer_class in tokenizer_config.json, or give model.tokenizer, a folder with tokenizer.json."
        )
    return sentence_piece.built(model, styles[family], settings, tokens)


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
    settings = {"do_lower_case": bool(config.get("lowercase", False))}
    return _fast(vocabularies.word_piece(_asset(assets, "vocabulary.txt"), settings), {})


def _hub_byte_pair(family: str) -> Callable[[Path, dict[str, Any]], Tokenizer]:
    def made(assets: Path, config: dict[str, Any]) -> Tokenizer:
        vocabulary, merges = _asset(assets, "vocabulary.json"), _asset(assets, "merges.txt")
        return _fast(vocabularies.byte_pair(vocabulary, merges, {"model_type": family}), {})

    return made


def _hub_sentence_piece(family: str) -> Callable[[Path, dict[str, Any]], Tokenizer]:
    """KerasHub gives a text to SentencePiece as it is, in capitals or not, and special tokens in it are no such."""

    def made(assets: Path, config: dict[str, Any]) -> Tokenizer:
        file = _asset(assets, "vocabulary.spm")
        key = file.read_bytes()
        if family == "xlm_roberta":
            engine = SentencePieceEngine(file, shift=1)
            return _make(engine, Template((0,), (2, 2), (2,), 1), 1, 3, "", key, family)
        engine = SentencePieceEngine(file)
        start, end = engine.id("[CLS]"), engine.id("[SEP]")
        if start is None or end is None:
            raise ModelError(f"The vocabulary '{file}' lacks one of [CLS], [SEP].")
        pads = [number for token in USUAL["pad_token"] if (number := engine.id(token)) is not None]
        pad, unk = next(iter(pads), 0), engine.inner.unk_id()
        return _make(engine, Template((start,), (end,), (end,), 1, True), pad, unk, "", key, family)

    return made


KERAS_HUB: dict[str, Callable[[Path, dict[str, Any]], Tokenizer]] = {
    **dict.fromkeys(("BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer"), _hub_word_piece),
    **dict.fromkeys(("RobertaTokenizer", "GPT2Tokenizer", "BartTokenizer"), _hub_byte_pair("")),
    "OPTTokenizer": _hub_byte_pair("opt"),
    "AlbertTokenizer": _hub_sentence_piece("albert"),
    "DebertaV3Tokenizer": _hub_sentence_piece("deberta"),
    "FNetTokenizer": _hub_sentence_piece("fnet"),
    "XLMRobertaTokenizer": _hub_sentence_piece("xlm_roberta"),
}
