"""Every family's tokenizer gives the ids of transformers' own, for texts that are hard to part, from each of its layouts."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import transformers
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers

from kft.backbones import tokenizer_files
from kft.backbones.tokenizer import Tokenizer, pack, read
from kft.errors import ModelError

WORDS = [
    "a good film and a bad book, it was very quite superb",
    "naïve café — the book's so-called “plot” is über",
    "東京 is far 日本 한국어 中文",
    "tabs and lines and spaces, zero width control",
    "1,234.5 + 6e7 = 50% ???",
    "русский Ελληνικά हिन्दी ไทย مرحبا שלום",
    "``quoted'' it's don't (really)! [x] <y> | one two three x xx xxx",
]
CORPUS = [*WORDS, *(word.upper() for word in WORDS), "lovely books and awful films"] * 8
SPELLED_OUT = "[CLS] [SEP] [PAD] [UNK] [MASK] <s> </s> <pad> <unk> <mask> <sep> <cls> <eop> <extra_id_0> <|endoftext|>"
HARD = [
    "a good film",
    "A GOOD Film, it was VERY quite SUPERB.",
    "naïve café ÀÉÎÕÜ ßẞ İı — “plot”",
    "e\u0301 and a\u0308\u0323 and \u0301alone",
    "東京 is far日本語のテキスト 한국어 中文字符",
    "🙂 fine 👩\u200d👩\u200d👧 🇫🇷 👍🏽",
    "\x00 nul \x07 bell\x1besc \x7f \x85 \ufffd \ufeffbom \ue000",
    "x" * 130,
    "ab" * 300,
    "שלום עולם مرحبا بالعالم \u200frtl\u202e",
    "zero\u200bwidth\u200djoiner\u2060 soft\xadhyphen",
    "tabs\tand\nlines\r\nand  two   spaces \t ",
    "  leading and trailing  ",
    "\u00a0nbsp\u3000wide\u2003em\u2028line",
    "",
    "   ",
    "\n",
    "1,234.5 + 6e7 = ??? 50% 12345678 x²",
    "``quoted'' it's DON'T (really)!? ...",
    "हिन्दी ไทย தமிழ் русский Ελληνικά",
    "▁under ▁▁ lines _ and Ġ",
    *(f"one {token} two{token}three {token}" for token in (*SPELLED_OUT.split(), "<|user|>", "<|padding|>")),
]
COMPATIBLE = "ﬁne \uff21\uff42 \uff11\uff12 ½ ②"  # which NFKC replaces
SECOND = [*HARD[7:], *HARD[:7]]


@dataclass(frozen=True)
class Case:
    """A family's tokenizer.

    Attributes:
        cls: transformers' class.
        files: writes the vocabulary's files into a folder, as it was published before `tokenizer.json`; or returns the
            tokenizer where there were none.
        config: of its `tokenizer_config.json`.
        family: model_type in `config.json`.
        segments: whether a second text has a segment of its own.
    """

    cls: str
    files: Callable[[Path], Any]
    config: dict[str, Any] = field(default_factory=dict)
    family: str = ""
    segments: bool = False


def word_piece(*first: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        inner = tokenizers.BertWordPieceTokenizer(lowercase=False)
        inner.train_from_iterator(CORPUS, vocab_size=400, min_frequency=1, special_tokens=[], show_progress=False)
        found = sorted(inner.get_vocab().items(), key=lambda item: item[1])
        words = dict.fromkeys([*first, *(word for word, _ in found)])
        (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf8")

    return write


def lines(words: list[str]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "vocab.txt").write_text("\n".join(words), encoding="utf8")

    return write


def byte_pair(*first: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        inner = tokenizers.ByteLevelBPETokenizer()
        special = list(first)
        inner.train_from_iterator(CORPUS, vocab_size=420, min_frequency=2, special_tokens=special, show_progress=False)
        inner.save_model(str(folder))

    return write


def sentence_piece(name: str, **options: Any) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        library = pytest.importorskip("sentencepiece")
        pytest.importorskip("google.protobuf", reason="transformers reads SentencePiece models by it")
        with (folder / name).open("wb") as file:
            library.SentencePieceTrainer.train(
                sentence_iterator=iter(CORPUS),
                model_writer=file,
                vocab_size=220,
                hard_vocab_limit=False,
                character_coverage=1.0,
                minloglevel=2,
                **options,
            )

    return write


def whole(made: Callable[[], tokenizers.Tokenizer]) -> Callable[[Path], Any]:
    return lambda folder: made()


def trained(normalizer: Any, parts: Any, special: list[Any], **options: Any) -> tokenizers.Tokenizer:
    """A byte-level BPE, its texts parted as is said."""
    inner = tokenizers.Tokenizer(models.BPE(**options))
    if normalizer is not None:
        inner.normalizer = normalizer
    inner.pre_tokenizer = parts
    alphabet = pre_tokenizers.ByteLevel.alphabet() if "ByteLevel" in str(parts) else []
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator(CORPUS, trainer)
    return inner


def bloom() -> tokenizers.Tokenizer:
    split = pre_tokenizers.Split(tokenizers.Regex(" ?[^(\\s|[.,!?…。\uff0c、।\u06d4،])]+"), "isolated")
    parts = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    inner = trained(None, parts, ["<unk>", "<s>", "</s>", "<pad>"])
    inner.post_processor = processors.ByteLevel(trim_offsets=False)
    return inner


def falcon() -> tokenizers.Tokenizer:
    parts = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Punctuation("contiguous"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
            pre_tokenizers.Digits(individual_digits=False),
            pre_tokenizers.Split(tokenizers.Regex("[0-9][0-9][0-9]"), "isolated"),
        ]
    )
    return trained(None, parts, [">>TITLE<<", "<|endoftext|>"])


def modernbert() -> tokenizers.Tokenizer:
    mask = tokenizers.AddedToken("[MASK]", lstrip=True, special=True)
    parts = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner = trained(
        normalizers.NFC(), parts, ["<|padding|>", "<|endoftext|>", "[UNK]", "[CLS]", "[SEP]", "[PAD]", mask]
    )
    inner.add_tokens([tokenizers.AddedToken(" " * count, normalized=True) for count in (3, 2)])
    special = [(token, inner.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0", pair="[CLS]:0 $A:0 [SEP]:0 $B:0 [SEP]:0", special_tokens=special
    )
    return inner


def phi3() -> tokenizers.Tokenizer:
    """Llama's tokenizer as it was published: spaces are replaced first, and bytes stand for what is unknown."""
    steps = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    one = tokenizers.Tokenizer(models.BPE())
    one.normalizer = steps
    values = [f"<0x{number:02X}>" for number in range(256)]
    one.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=400, show_progress=False))
    state = json.loads(one.to_str())["model"]
    merges = [tuple(merge) for merge in state["merges"]]
    vocabulary = {token: i for i, token in enumerate(["<unk>", "<s>", "</s>", *values, *state["vocab"]])}
    inner = tokenizers.Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    inner.normalizer = steps
    inner.add_special_tokens(["<unk>", "<s>", "</s>"])
    inner.add_tokens([tokenizers.AddedToken("<|user|>", rstrip=True, normalized=False, special=True)])
    inner.post_processor = processors.TemplateProcessing(
        single="<s>:0 $A:0", pair="<s>:0 $A:0 <s>:1 $B:1", special_tokens=[("<s>", 1)]
    )
    return inner


def llama() -> Any:
    state = json.loads(phi3().to_str())["model"]
    merges = [tuple(merge) for merge in state["merges"]]
    return transformers.LlamaTokenizer(vocab=state["vocab"], merges=merges, add_bos_token=True)


def gemma() -> Any:
    """That of all four Gemmas: a space is part of the word before it."""
    state = json.loads(phi3().to_str())["model"]
    words = [token for token in state["vocab"] if token not in ("<unk>", "<s>", "</s>")]
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *words])}
    return transformers.GemmaTokenizer(vocab=vocabulary, merges=[tuple(merge) for merge in state["merges"]])


BERT = word_piece("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MPNET = word_piece("<s>", "<pad>", "</s>", "<unk>", "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<mask>")
ROBERTA = byte_pair("<s>", "<pad>", "</s>", "<unk>", "<mask>")
ESM = ["<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWCXBUZO.-", "<null_1>", "<mask>"]
ALBERT: dict[str, Any] = {
    "pad_id": 0,
    "unk_id": 1,
    "bos_id": -1,
    "eos_id": -1,
    "control_symbols": ["[CLS]", "[SEP]", "[MASK]"],
}
T5: dict[str, Any] = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
DEBERTA: dict[str, Any] = {
    **{"pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3},
    **{"pad_piece": "[PAD]", "bos_piece": "[CLS]", "eos_piece": "[SEP]", "unk_piece": "[UNK]"},
}
XLNET: dict[str, Any] = {
    "control_symbols": ["<cls>", "<sep>", "<pad>", "<mask>", "<eod>"],
    "user_defined_symbols": ["<eop>"],
}
OPT = {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>", "add_bos_token": True}
CASES = {
    "bert": Case("BertTokenizer", BERT, {"do_lower_case": True}, "bert", True),
    "bert-cased": Case("BertTokenizer", BERT, {"do_lower_case": False}, "bert", True),
    "bert-accents": Case(
        "BertTokenizer", BERT, {"strip_accents": False, "tokenize_chinese_chars": False}, "bert", True
    ),
    "distilbert": Case("DistilBertTokenizer", BERT, {}, "distilbert", True),
    "electra": Case("ElectraTokenizer", BERT, {}, "electra", True),
    "mobilebert": Case("MobileBertTokenizer", BERT, {}, "mobilebert", True),
    "mpnet": Case("MPNetTokenizer", MPNET, {}, "mpnet"),
    "roberta": Case("RobertaTokenizer", ROBERTA, {}, "roberta"),
    "roberta-spaced": Case("RobertaTokenizer", ROBERTA, {"add_prefix_space": True}, "roberta"),
    "bart": Case("BartTokenizer", ROBERTA, {}, "bart"),
    "gpt2": Case("GPT2Tokenizer", byte_pair("<|endoftext|>"), {}, "gpt2"),
    "opt": Case("GPT2Tokenizer", ROBERTA, OPT, "opt"),
    "gpt_neox": Case("GPTNeoXTokenizer", byte_pair("<|endoftext|>", "<|padding|>"), {}, "gpt_neox"),
    "albert": Case("AlbertTokenizer", sentence_piece("spiece.model", **ALBERT), {}, "albert", True),
    "albert-cased": Case(
        "AlbertTokenizer",
        sentence_piece("spiece.model", **ALBERT),
        {"do_lower_case": False, "keep_accents": True},
        "albert",
        True,
    ),
    # Given a SentencePiece model alone, transformers' FNetTokenizer forgets the space before the first word, and this does not.
    "fnet": Case(
        "AlbertTokenizer",
        sentence_piece("spiece.model", **ALBERT),
        {"do_lower_case": False, "keep_accents": True},
        "fnet",
        True,
    ),
    "t5": Case("T5Tokenizer", sentence_piece("spiece.model", **T5), {}, "t5"),
    "mt5": Case("T5Tokenizer", sentence_piece("spiece.model", **T5), {"extra_ids": 0}, "mt5"),
    "xlm-roberta": Case("XLMRobertaTokenizer", sentence_piece("sentencepiece.bpe.model"), {}, "xlm-roberta"),
    "camembert": Case("CamembertTokenizer", sentence_piece("sentencepiece.bpe.model"), {}, "camembert"),
    # transformers' class leaves out what the model's own file replaces: here that is nothing.
    "deberta": Case(
        "DebertaV2Tokenizer",
        sentence_piece("spm.model", **DEBERTA, normalization_rule_name="identity"),
        {},
        "deberta-v2",
        True,
    ),
    "xlnet": Case("XLNetTokenizer", sentence_piece("spiece.model", **XLNET), {}, "xlnet"),
    "esm": Case("EsmTokenizer", lines(ESM), {}, "esm"),
    "bloom": Case("", whole(bloom), {"pad_token": "<pad>", "unk_token": "<unk>"}),
    "falcon": Case("", whole(falcon), {"eos_token": "<|endoftext|>"}),
    "phi3": Case("", whole(phi3), {"pad_token": "</s>", "unk_token": "<unk>"}),
    "modernbert": Case("", whole(modernbert), {"pad_token": "[PAD]", "unk_token": "[UNK]"}),
    "llama": Case("LlamaTokenizer", lambda folder: llama()),
    "gemma": Case("GemmaTokenizer", lambda folder: gemma()),
}
LAYOUTS = [
    (name, layout)
    for name, case in CASES.items()
    for layout in ("tokenizer.json", "files", "class")
    if (case.family or layout == "tokenizer.json") and (name, layout) != ("esm", "tokenizer.json")
]


def alone(files: Path, folder: Path, case: Case) -> Path:
    """A tokenizer's folder without its model's: not the type of a model but the tokenizer's class is named."""
    shutil.copytree(files, folder, ignore=shutil.ignore_patterns("config.json"), dirs_exist_ok=True)
    config = {**case.config, "tokenizer_class": case.cls}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf8")
    return folder


Made = Callable[[str, str], tuple[Path, Any]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Makes the folder of a tiny tokenizer, and transformers' own tokenizer of that folder."""
    root = tmp_path_factory.mktemp("tokenizers")

    @functools.cache
    def before(name: str) -> tuple[Path, Any]:
        folder, case = root / name / "files", CASES[name]
        folder.mkdir(parents=True, exist_ok=True)
        found = case.files(folder)
        if found is not None and not isinstance(found, tokenizers.Tokenizer):
            return folder, found
        if found is not None:
            return folder, transformers.PreTrainedTokenizerFast(tokenizer_object=found, **case.config)
        (folder / "config.json").write_text(json.dumps({"model_type": case.family}), encoding="utf8")
        (folder / "tokenizer_config.json").write_text(json.dumps(case.config), encoding="utf8")
        return folder, getattr(transformers, case.cls).from_pretrained(folder)

    def make(name: str, layout: str) -> tuple[Path, Any]:
        files, truth = before(name)
        if layout == "files":
            return files, truth
        if layout == "class":
            return alone(files, root / name / layout, CASES[name]), truth
        folder = root / name / "fast"
        truth.save_pretrained(folder)
        assert (folder / "tokenizer.json").is_file()
        cls = CASES[name].cls or "PreTrainedTokenizerFast"
        return folder, getattr(transformers, cls).from_pretrained(folder)

    return make


def texts_of(rows: Any) -> list[list[int]]:
    return [row.tolist() for row in rows]


def differing(mine: list[list[int]], theirs: list[list[int]], texts: list[str]) -> list[Any]:
    return [(text, a, b) for text, a, b in zip(texts, mine, theirs, strict=True) if a != b]


def assert_as_transformers(ours: Tokenizer, truth: Any, segments: bool) -> None:
    assert not differing(ours.tokenize(HARD), truth(HARD, add_special_tokens=False)["input_ids"], HARD)
    if truth.pad_token_id is not None:
        assert ours.pad_id == truth.pad_token_id
    if truth.unk_token_id is not None:
        assert ours.unknown_id == truth.unk_token_id
    for length in (9, 512):
        mine = texts_of(pack(ours, [HARD], length)[0])
        assert not differing(mine, truth(HARD, truncation=True, max_length=length)["input_ids"], HARD)
        rows, starts, lengths = pack(ours, [HARD, SECOND], length)
        pairs = truth(HARD, SECOND, truncation="longest_first", max_length=length, return_token_type_ids=True)
        assert not differing(texts_of(rows), pairs["input_ids"], HARD)
        assert lengths.tolist() == [len(ids) for ids in truth(HARD, SECOND)["input_ids"]]
        if segments:
            kinds = [(np.arange(len(row)) >= start).tolist() for start, row in zip(starts, rows, strict=True)]
            assert kinds == pairs["token_type_ids"]


@pytest.mark.parametrize(("name", "layout"), LAYOUTS, ids=lambda value: value)
def test_the_ids_are_those_of_transformers(made: Made, name: str, layout: str, tmp_path: Path) -> None:
    folder, truth = made(name, layout)
    ours = tokenizer_files.load(folder)
    assert_as_transformers(ours, truth, CASES[name].segments)
    ours.save(tmp_path)
    assert read(tmp_path).tokenize(HARD) == ours.tokenize(HARD)


def test_what_a_sentencepiece_model_replaces_is_replaced_for_deberta(tmp_path: Path) -> None:
    """Its makers' own code has the model's file replace characters; transformers' class of today does not."""
    library = pytest.importorskip("sentencepiece")
    sentence_piece("spm.model", **DEBERTA)(tmp_path)
    truth = library.SentencePieceProcessor(model_file=str(tmp_path / "spm.model"))
    texts = [COMPATIBLE, *(text for text in HARD if "[" not in text and "<" not in text and "\x85" not in text)]
    assert not differing(tokenizer_files.load(tmp_path).tokenize(texts), truth.encode(texts), texts)


@pytest.mark.parametrize("config", [{"model_type": "deberta"}, {"tokenizer_class": "DebertaTokenizer"}])
def test_debertas_first_tokenizer_has_one_separator_between_texts(tmp_path: Path, config: dict[str, str]) -> None:
    """As its makers trained it, and transformers 4 reads its files; transformers 5 puts two there."""
    byte_pair("[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]")(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf8")
    truth, ours = transformers.DebertaTokenizer.from_pretrained(tmp_path), tokenizer_files.load(tmp_path)
    assert not differing(ours.tokenize(HARD), truth(HARD, add_special_tokens=False)["input_ids"], HARD)
    assert not differing(texts_of(pack(ours, [HARD], 2000)[0]), truth(HARD)["input_ids"], HARD)
    assert (ours.pad_id, ours.unknown_id) == (truth.pad_token_id, truth.unk_token_id)
    pairs = [[0, *first, 2, *second, 2] for first, second in zip(*map(ours.tokenize, (HARD, SECOND)), strict=True)]
    assert not differing(texts_of(pack(ours, [HARD, SECOND], 2000)[0]), pairs, HARD)


def test_added_tokens_keep_their_ids(made: Made, tmp_path: Path) -> None:
    shutil.copytree(made("bert", "files")[0], tmp_path / "bert")
    count = len((tmp_path / "bert" / "vocab.txt").read_text(encoding="utf8").splitlines())
    file = tmp_path / "bert" / "added_tokens.json"
    file.write_text(json.dumps({"[SECOND]": count + 1, "[FIRST]": count}), encoding="utf8")
    truth = transformers.BertTokenizer.from_pretrained(tmp_path / "bert")
    texts = ["a [FIRST] film", "[SECOND]good[FIRST]"]
    ours = tokenizer_files.load(tmp_path / "bert")
    assert ours.tokenize(texts) == truth(texts, add_special_tokens=False)["input_ids"]
    assert count in ours.tokenize(texts)[0]
    file.write_text(json.dumps({"[FIRST]": count + 5}), encoding="utf8")
    with pytest.raises(ModelError, match=f"adds the token '.FIRST.' with the id {count + 5}, but .* it gets {count}"):
        tokenizer_files.load(tmp_path / "bert")


@pytest.mark.parametrize(
    ("family", "options", "says"),
    [
        ("reformer", ALBERT, "Unknown family with a SentencePiece model 'reformer'"),
        ("t5", {}, "is not a Unigram model"),
    ],
)
def test_a_sentencepiece_model_of_another_kind_is_refused(
    tmp_path: Path, family: str, options: dict[str, Any], says: str
) -> None:
    kind = "unigram" if options else "bpe"
    sentence_piece("spiece.model", model_type=kind, **options)(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family}), encoding="utf8")
    with pytest.raises(ModelError, match=says):
        tokenizer_files.load(tmp_path)


PROTEINS = [
    "MKTAYIAKQR",
    "MKTayiAKqr",
    "M K  T\tA\nY",
    " MKT ",
    "MK?T é?A ??",
    "MKJT JJ J J*",
    "<cls>MK<mask>T <eos> <pad><unk><null_1><null_0>",
    "M<masK>T<",
    "MKT東京A\u00a0A",
    "",
    "   ",
]


@pytest.mark.parametrize("config", [{}, {"eos_token": None}], ids=["esm2", "no-end"])
def test_esm_reads_proteins_as_transformers_does(tmp_path: Path, config: dict[str, Any]) -> None:
    lines(ESM)(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "EsmTokenizer", **config}))
    truth, ours = transformers.EsmTokenizer.from_pretrained(tmp_path), tokenizer_files.load(tmp_path)
    expected = truth(PROTEINS, add_special_tokens=False)["input_ids"]
    assert not differing(ours.tokenize(PROTEINS), expected, PROTEINS)
    assert not differing(texts_of(pack(ours, [PROTEINS], 64)[0]), truth(PROTEINS)["input_ids"], PROTEINS)
    if not config:
        turned = PROTEINS[::-1]
        assert not differing(
            texts_of(pack(ours, [PROTEINS, turned], 64)[0]), truth(PROTEINS, turned)["input_ids"], PROTEINS
        )


def test_esm_takes_the_longest_entry_of_its_vocabulary(tmp_path: Path) -> None:
    """As the Nucleotide Transformer's has them: six letters, and each alone for what is left over."""
    words = ["<unk>", "<pad>", "<mask>", "<cls>", "<eos>", *"ATCGN", "ATCGAT", "TCGATC", "GGGGGG"]
    lines(words)(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "esm"}')
    truth, ours = transformers.EsmTokenizer.from_pretrained(tmp_path), tokenizer_files.load(tmp_path)
    texts = ["ATCGATCGG", "TTCGATCGGGGGGG", "ATCGANNN", "xATCGATx"]
    assert ours.tokenize(texts) == truth(texts, add_special_tokens=False)["input_ids"]
    assert words.index("ATCGAT") in ours.tokenize(texts)[0]


@pytest.mark.parametrize(
    ("files", "name"),
    [
        (BERT, "BertJapaneseTokenizer"),
        (BERT, "FunnelTokenizerFast"),
        (BERT, "PhobertTokenizer"),
        (ROBERTA, "CTRLTokenizer"),
        (ROBERTA, "Qwen2Tokenizer"),
        (sentence_piece("spiece.model", **ALBERT), "ReformerTokenizer"),
    ],
)
def test_a_class_that_reads_such_files_otherwise_is_refused(
    tmp_path: Path, files: Callable[[Path], Any], name: str
) -> None:
    files(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"tokenizer_class": name}))
    with pytest.raises(
        ModelError, match=f"is a {name}; of such a file kft reads .*model.tokenizer, a folder"
    ) as caught:
        tokenizer_files.load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("files", "family"), [(ROBERTA, "ctrl"), (ROBERTA, "clip"), (BERT, "splinter")])
def test_the_type_of_a_model_tells_too_which_class_reads_its_files(
    tmp_path: Path, files: Callable[[Path], Any], family: str
) -> None:
    files(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
    with pytest.raises(ModelError, match=f"(?i)is a {family}Tokenizer; of such a file kft reads"):
        tokenizer_files.load(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "RobertaTokenizer" if files is ROBERTA else "BertTokenizer"})
    )
    assert tokenizer_files.load(tmp_path).template.prefix


@pytest.mark.parametrize("name", ["BertTokenizerFast", "PreTrainedTokenizerFast", None])
def test_a_class_by_its_other_name_is_the_same(made: Made, tmp_path: Path, name: str | None) -> None:
    folder = made("bert", "files")[0]
    shutil.copytree(folder, tmp_path / "bert")
    (tmp_path / "bert" / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name}))
    assert tokenizer_files.load(tmp_path / "bert").digest == tokenizer_files.load(folder).digest


def test_a_class_counts_more_than_the_type_of_a_model(made: Made, tmp_path: Path) -> None:
    """As with Multilingual MiniLM, a BERT with XLM-RoBERTa's tokenizer."""
    folder, truth = made("xlm-roberta", "class")
    shutil.copytree(folder, tmp_path / "minilm")
    (tmp_path / "minilm" / "config.json").write_text('{"model_type": "bert"}')
    assert_as_transformers(tokenizer_files.load(tmp_path / "minilm"), truth, False)


@pytest.mark.parametrize("config", [{}, {"model_type": "xlnet"}, {"tokenizer_class": "AlbertTokenizer"}])
def test_a_sentencepiece_model_without_the_tokens_of_its_family_is_refused(
    tmp_path: Path, config: dict[str, str]
) -> None:
    sentence_piece("spiece.model", **T5)(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    says = "lacks <cls>, <sep>, which xlnet" if "model_type" in config else r"lacks \[CLS\], \[SEP\], which albert"
    with pytest.raises(ModelError, match=f"{says} sets around a text.*tokenizer_class") as caught:
        tokenizer_files.load(tmp_path)
    assert "\n" not in str(caught.value)
