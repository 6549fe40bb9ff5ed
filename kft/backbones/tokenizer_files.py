"""The tokenizer that a folder holds, whichever way it was published; nothing here loads keras."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import normalizers, pre_tokenizers

from kft.backbones import saved_model, sentence_piece
from kft.backbones.engines import Engine, FastEngine, SentencePieceEngine, WordEngine
from kft.backbones.tokenizer import Template, Tokenizer, surround
from kft.errors import ModelError, unknown

SENTENCE_PIECE_FILES = {"spiece.model": "albert", "sentencepiece.bpe.model": "xlm-roberta", "spm.model": "deberta-v2"}
USUAL = {
    "pad_token": ("[PAD]", "<pad>", "<|padding|>", "<|endoftext|>"),
    "unk_token": ("[UNK]", "<unk>", "<|endoftext|>"),
}
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


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
        inner = _word_piece(folder / "vocab.txt", settings, added)
    elif (folder / "vocab.json").exists() and (folder / "merges.txt").exists():
        inner = _byte_pair(folder / "vocab.json", folder / "merges.txt", settings, added)
    elif (name := next((name for name in SENTENCE_PIECE_FILES if (folder / name).exists()), None)) is not None:
        family = str(settings["model_type"] or SENTENCE_PIECE_FILES[name])
        inner = _sentence_piece(folder / name, family, settings, added)
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
    special = [_content(settings.get(name)) for name in NAMED]
    found = {int(number): values for number, values in (settings.get("added_tokens_decoder") or {}).items()} or {
        number: {"content": token, "normalized": token not in special, "special": token in special}
        for token, number in _json(folder / "added_tokens.json").items()
    }
    return {number: tokenizers.AddedToken(**found[number]) for number in sorted(found)}


def _content(token: Any) -> str:
    return str((token.get("content") if isinstance(token, dict) else token) or "")


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
    if _cuts_words(settings):
        engine = WordEngine(inner)
    return _make(engine, template, pad, unk, prefix, engine.kind, engine.definition())


def _cuts_words(settings: Mapping[str, Any]) -> bool:
    """Says whether a folder's tokenizer is RoFormer's, which cuts Chinese into words; its files do not say it themselves."""
    named = settings.get("tokenizer_class") or ("RoFormer" if settings.get("model_type") == "roformer" else "")
    return str(named).startswith("RoFormer")


def _special(inner: tokenizers.Tokenizer, named: Any, usual: Sequence[str]) -> int:
    """Returns the id of the token a folder names, or of a usual one: a special token, or else any."""
    special = [token.content for token in inner.get_added_tokens_decoder().values()]
    for token in (_content(named), *(token for token in usual if token in special), *usual):
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


def _word_piece(
    file: Path, settings: Mapping[str, Any], added: Mapping[int, tokenizers.AddedToken] | None = None
) -> tokenizers.Tokenizer:
    """BERT's tokenizer; MPNet's, whose vocabulary has RoBERTa's special tokens beside BERT's."""
    inner = tokenizers.Tokenizer(tokenizers.models.WordPiece.from_file(str(file), unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer(
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True) and not _cuts_words(settings),
        strip_accents=settings.get("strip_accents"),
        lowercase=bool(settings.get("do_lower_case", True)),
    )
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = tokenizers.decoders.WordPiece()
    inner.add_tokens(list((added or {}).values()))
    mpnet = "MPNet" in _content(settings.get("tokenizer_class")) or settings.get("model_type") == "mpnet"
    if inner.token_to_id("<s>") is not None and (mpnet or inner.token_to_id("[CLS]") is None):
        style, needed = sentence_piece.ROBERTA, ("<s>", "</s>", "<pad>", "[UNK]")
    else:
        style, needed = sentence_piece.BERT, ("[CLS]", "[SEP]", "[PAD]", "[UNK]")
    if any(inner.token_to_id(token) is None for token in needed):
        raise ModelError(f"The vocabulary '{file}' lacks one of {', '.join(needed)}.")
    mask = "<mask>" if style == sentence_piece.ROBERTA else "[MASK]"
    _spell_out(inner, (*needed, mask), lstrip=("<mask>",))
    surround(inner, *style)
    return inner


def _spell_out(inner: tokenizers.Tokenizer, tokens: Sequence[str], lstrip: Sequence[str] = ()) -> None:
    """Lets a text spell out those special tokens that are in the vocabulary."""
    there = [token for token in dict.fromkeys(tokens) if token and inner.token_to_id(token) is not None]
    inner.add_special_tokens(
        [tokenizers.AddedToken(token, special=True, normalized=False, lstrip=token in lstrip) for token in there]
    )


def _byte_pair(
    vocabulary: Path,
    merges: Path,
    settings: Mapping[str, Any],
    added: Mapping[int, tokenizers.AddedToken] | None = None,
) -> tokenizers.Tokenizer:
    """The tokenizers of GPT-2 and, with special tokens around a text, of RoBERTa, BART and OPT."""
    inner = tokenizers.Tokenizer(tokenizers.models.BPE.from_file(str(vocabulary), str(merges)))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=bool(settings.get("add_prefix_space")))
    inner.decoder = tokenizers.decoders.ByteLevel()
    if settings.get("model_type") == "gpt_neox":
        inner.normalizer = normalizers.NFC()
    inner.add_tokens(list((added or {}).values()))
    opt, named = settings.get("model_type") == "opt", [_content(settings.get(name)) for name in NAMED]
    if opt or settings.get("add_bos_token") or inner.token_to_id("<s>") is None or inner.token_to_id("</s>") is None:
        _spell_out(inner, [*named, *(("</s>", "<pad>") if opt else ()), "<|endoftext|>", "<|padding|>"])
        start = _content(settings.get("bos_token")) or ("</s>" if opt else "<|endoftext|>")
        if settings.get("add_bos_token", opt):
            surround(inner, f"{start} $A", f"{start} $A {start} $B")
        return inner
    _spell_out(inner, ("<s>", "</s>", "<pad>", "<unk>", "<mask>", *named))
    surround(inner, *sentence_piece.ROBERTA)
    return inner


def _sentence_piece(
    file: Path, family: str, settings: Mapping[str, Any], added: Mapping[int, tokenizers.AddedToken]
) -> tokenizers.Tokenizer:
    model, styles = sentence_piece.read(file), sentence_piece.STYLES
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
    return sentence_piece.built(model, styles[family], settings, list(added.values()))


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
    return _fast(_word_piece(_asset(assets, "vocabulary.txt"), settings), {})


def _hub_byte_pair(family: str) -> Callable[[Path, dict[str, Any]], Tokenizer]:
    def made(assets: Path, config: dict[str, Any]) -> Tokenizer:
        vocabulary, merges = _asset(assets, "vocabulary.json"), _asset(assets, "merges.txt")
        return _fast(_byte_pair(vocabulary, merges, {"model_type": family}), {})

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
