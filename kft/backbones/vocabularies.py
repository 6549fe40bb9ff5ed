"""Tokenizers of vocabularies in plain files, as folders had them before `tokenizer.json`; nothing here loads keras."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import normalizers, pre_tokenizers

from kft.backbones import sentence_piece
from kft.backbones.tokenizer import surround
from kft.errors import ModelError, listed

NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
WORD_PIECE = (
    *("Bert", "ConvBert", "DPR", "DPRContextEncoder", "DPRQuestionEncoder", "DPRReader", "DistilBert", "Electra"),
    *("LayoutLM", "Lxmert", "MPNet", "MobileBert", "Realm", "RetriBert", "RoFormer", "SqueezeBert"),
)
BYTE_PAIR = ("Bart", "CodeGen", "Deberta", "GPT2", "GPTNeoX", "LED", "Longformer", "Mvp", "Roberta")
ANY = ("PreTrainedTokenizerFast", "PreTrainedTokenizer", "TokenizersBackend")
UNNAMED = {
    **{"clip": "CLIP", "ctrl": "CTRL", "deberta": "Deberta", "esm": "Esm", "flaubert": "Flaubert", "xlm": "XLM"},
    **{"openai-gpt": "OpenAIGPT", "splinter": "Splinter", "tapas": "Tapas"},
}


def content(token: Any) -> str:
    """Returns the string of a token that a folder's file names, empty where it names none."""
    return str((token.get("content") if isinstance(token, dict) else token) or "")


def named(settings: Mapping[str, Any]) -> str:
    """Returns transformers' class that a folder names, without `TokenizerFast` at its end; empty where it tells nothing."""
    name = str(settings.get("tokenizer_class") or "")
    return "" if name in ANY else name.removesuffix("Fast").removesuffix("Tokenizer")


def check(file: Path, known: Collection[str], settings: Mapping[str, Any]) -> None:
    """Checks that a folder's tokenizer is of a class that is known for such a file.

    Raises:
        ModelError: if it names another one, or names none and its model's type has another one.
    """
    name = named(settings) or UNNAMED.get(str(settings.get("model_type")), "")
    if name and name not in known:
        raise ModelError(
            f"The tokenizer of '{file}' is a {settings.get('tokenizer_class') or name + 'Tokenizer'}; of such a file kft reads "
            f"those of {listed(sorted(known), 20)}. Give model.tokenizer, a folder with tokenizer.json."
        )


def of_lines(
    file: Path, settings: Mapping[str, Any], added: Mapping[int, tokenizers.AddedToken]
) -> tokenizers.Tokenizer:
    """Returns the tokenizer of a `vocab.txt`: BERT's, or ESM-2's where the folder is one of its."""
    if (named(settings) or UNNAMED.get(str(settings.get("model_type")))) == "Esm":
        return residues(file, settings, added)
    check(file, (*WORD_PIECE, "Esm"), settings)
    return word_piece(file, settings, added)


def cuts_words(settings: Mapping[str, Any]) -> bool:
    """Says whether a folder's tokenizer is RoFormer's, which cuts Chinese into words; its files do not say it themselves."""
    name = settings.get("tokenizer_class") or ("RoFormer" if settings.get("model_type") == "roformer" else "")
    return str(name).startswith("RoFormer")


def residues(
    file: Path, settings: Mapping[str, Any], added: Mapping[int, tokenizers.AddedToken] | None = None
) -> tokenizers.Tokenizer:
    """ESM-2's tokenizer: each entry of the vocabulary is a token wherever it stands, what is between them is unknown.

    A folder whose `eos_token` is null, as the Nucleotide Transformer's is, has `<cls>` alone around a text.
    """
    lines = [line.strip() for line in file.read_text(encoding="utf8").splitlines()]
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel({t: i for i, t in enumerate(lines)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.add_tokens(list((added or {}).values()))
    end = " <eos>" if settings.get("eos_token", "<eos>") else ""
    _demand(inner, file, ("<cls>", "<pad>", "<unk>", *end.split()))
    _spell_out(inner, ("<cls>", "<pad>", "<eos>", "<unk>", "<mask>"))
    inner.add_tokens([tokenizers.AddedToken(token, normalized=False) for token in dict.fromkeys(lines) if token])
    surround(inner, f"<cls> $A{end}", f"<cls> $A{end} $B{end}")
    return inner


def _demand(inner: tokenizers.Tokenizer, file: Path, tokens: Sequence[str]) -> None:
    if any(inner.token_to_id(token) is None for token in tokens):
        raise ModelError(f"The vocabulary '{file}' lacks one of {', '.join(tokens)}.")


def word_piece(
    file: Path, settings: Mapping[str, Any], added: Mapping[int, tokenizers.AddedToken] | None = None
) -> tokenizers.Tokenizer:
    """BERT's tokenizer; MPNet's, whose vocabulary has RoBERTa's special tokens beside BERT's."""
    inner = tokenizers.Tokenizer(tokenizers.models.WordPiece.from_file(str(file), unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer(
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True) and not cuts_words(settings),
        strip_accents=settings.get("strip_accents"),
        lowercase=bool(settings.get("do_lower_case", True)),
    )
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = tokenizers.decoders.WordPiece()
    inner.add_tokens(list((added or {}).values()))
    mpnet = "MPNet" in content(settings.get("tokenizer_class")) or settings.get("model_type") == "mpnet"
    if inner.token_to_id("<s>") is not None and (mpnet or inner.token_to_id("[CLS]") is None):
        style, needed = sentence_piece.ROBERTA, ("<s>", "</s>", "<pad>", "[UNK]")
    else:
        style, needed = sentence_piece.BERT, ("[CLS]", "[SEP]", "[PAD]", "[UNK]")
    _demand(inner, file, needed)
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


def byte_pair(
    vocabulary: Path,
    merges: Path,
    settings: Mapping[str, Any],
    added: Mapping[int, tokenizers.AddedToken] | None = None,
) -> tokenizers.Tokenizer:
    """The tokenizers of GPT-2 and, with special tokens around a text, of RoBERTa, BART, OPT and DeBERTa's first kind.

    Between two texts DeBERTa has one `[SEP]`, as its makers and transformers 4 do; transformers 5 reads these files with two.
    """
    name = named(settings) or UNNAMED.get(str(settings.get("model_type")), "")
    inner = tokenizers.Tokenizer(tokenizers.models.BPE.from_file(str(vocabulary), str(merges)))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=bool(settings.get("add_prefix_space")))
    inner.decoder = tokenizers.decoders.ByteLevel()
    if settings.get("model_type") == "gpt_neox" or name == "GPTNeoX":
        inner.normalizer = normalizers.NFC()
    inner.add_tokens(list((added or {}).values()))
    if name == "Deberta":
        _demand(inner, vocabulary, ("[CLS]", "[SEP]", "[PAD]", "[UNK]"))
        _spell_out(inner, ("[CLS]", "[SEP]", "[PAD]", "[UNK]", "[MASK]"))
        surround(inner, *sentence_piece.BERT)
        return inner
    opt, special = settings.get("model_type") == "opt", [content(settings.get(token)) for token in NAMED]
    bare = opt or name in ("GPT2", "CodeGen", "GPTNeoX") or settings.get("add_bos_token")
    if bare or inner.token_to_id("<s>") is None or inner.token_to_id("</s>") is None:
        _spell_out(inner, [*special, *(("</s>", "<pad>") if opt else ()), "<|endoftext|>", "<|padding|>"])
        start = content(settings.get("bos_token")) or ("</s>" if opt else "<|endoftext|>")
        if settings.get("add_bos_token", opt):
            surround(inner, f"{start} $A", f"{start} $A {start} $B")
        return inner
    _spell_out(inner, ("<s>", "</s>", "<pad>", "<unk>", "<mask>", *special))
    surround(inner, *sentence_piece.ROBERTA)
    return inner
