from __future__ import annotations

import json
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import transformers

from kft.backbones import tokenizer_files
from kft.backbones.tokenizer import Tokenizer, pack, read, truncated_lengths
from kft.errors import ModelError

TEXTS = [
    "a good film",
    "A GOOD Film, it was very quite superb.",
    "naïve café — the book's so-called “plot”",
    "東京 is far 日本",
    "tabs\tand\nlines and  two  spaces ",
    "zero\u200bwidth \x00 control",
    "1,234.5 + 6e7 = ???",
    "🙂 fine 🙂",
    "",
    "   ",
    "x" * 130,
]
CORPUS = [text for text in TEXTS if text.strip()] + ["the good and the bad", "lovely books and awful films"] * 20
Folders = dict[str, Path]


def random_texts(count: int, most: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    words = ["good", "bad", "lovely", "film", "book", "phone", "table", "unbelievable", "it", "was,", "ﬁne", "zzz"]
    return [" ".join(rng.choice(words) for _ in range(rng.randint(0, most))) for _ in range(count)]


def keras_hub_preset(folder: Path, name: str, files: dict[str, Path], **config: Any) -> Path:
    """The layout in which KerasHub saves a tokenizer."""
    assets = folder / "assets" / "tokenizer"
    assets.mkdir(parents=True)
    for target, source in files.items():
        shutil.copyfile(source, assets / target)
    (folder / "tokenizer.json").write_text(
        json.dumps(
            {"module": "keras_hub", "class_name": name, "config": config, "registered_name": f"keras_hub>{name}"}
        )
    )
    return folder


@pytest.fixture(scope="module")
def bert(vocabulary: Path, tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """One WordPiece vocabulary in three layouts."""
    root = tmp_path_factory.mktemp("bert")
    transformers.BertTokenizerFast.from_pretrained(str(vocabulary)).save_pretrained(root / "fast")
    assert (root / "fast" / "tokenizer.json").exists()
    files = {"vocabulary.txt": vocabulary / "vocab.txt"}
    keras_hub_preset(root / "keras_hub", "BertTokenizer", files, lowercase=True)
    return {"vocab.txt": vocabulary, "tokenizer.json": root / "fast", "keras_hub": root / "keras_hub"}


@pytest.fixture(scope="module")
def roberta(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """One byte-level BPE in three layouts."""
    root = tmp_path_factory.mktemp("roberta")
    inner = tokenizers.ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    inner.train_from_iterator(CORPUS, vocab_size=420, min_frequency=1, special_tokens=special, show_progress=False)
    plain = root / "plain"
    plain.mkdir()
    inner.save_model(str(plain))
    transformers.RobertaTokenizerFast.from_pretrained(str(plain)).save_pretrained(root / "fast")
    assert (root / "fast" / "tokenizer.json").exists()
    files = {"vocabulary.json": plain / "vocab.json", "merges.txt": plain / "merges.txt"}
    keras_hub_preset(root / "keras_hub", "RobertaTokenizer", files)
    return {"vocab.json": plain, "tokenizer.json": root / "fast", "keras_hub": root / "keras_hub"}


def test_a_file_that_fills_texts_up_and_cuts_them_changes_nothing(bert: Folders, tmp_path: Path) -> None:
    """As sentence-transformers' files do."""
    shutil.copytree(bert["tokenizer.json"], tmp_path / "filled")
    inner = tokenizers.Tokenizer.from_file(str(tmp_path / "filled" / "tokenizer.json"))
    inner.enable_padding(length=128)
    inner.enable_truncation(16)
    inner.save(str(tmp_path / "filled" / "tokenizer.json"))
    ours, plain = tokenizer_files.load(tmp_path / "filled"), tokenizer_files.load(bert["tokenizer.json"])
    assert ours.template == plain.template and len(ours.template.suffix) == 1
    assert ours.tokenize(["good film " * 20]) == plain.tokenize(["good film " * 20])


@pytest.fixture(params=["vocab.txt", "tokenizer.json", "keras_hub"])
def bert_folder(request: pytest.FixtureRequest, bert: Folders) -> Path:
    return bert[request.param]


@pytest.fixture(params=["vocab.json", "tokenizer.json", "keras_hub"])
def roberta_folder(request: pytest.FixtureRequest, roberta: Folders) -> Path:
    return roberta[request.param]


@pytest.fixture
def bert_truth(vocabulary: Path) -> Any:
    return transformers.BertTokenizerFast.from_pretrained(str(vocabulary))


@pytest.fixture
def roberta_truth(roberta: Folders) -> Any:
    return transformers.RobertaTokenizerFast.from_pretrained(str(roberta["vocab.json"]))


def assert_tokenizes_as(ours: Tokenizer, truth: Any) -> None:
    texts = TEXTS + random_texts(30, 20)
    assert ours.tokenize(texts) == truth(texts, add_special_tokens=False)["input_ids"]
    assert (ours.pad_id, ours.unknown_id) == (truth.pad_token_id, truth.unk_token_id)
    rows, starts, whole = pack(ours, [texts], 512)
    expected = truth(texts)["input_ids"]
    assert [row.tolist() for row in rows] == expected
    assert starts.tolist() == whole.tolist() == [len(ids) for ids in expected]


def segments(starts: np.ndarray, rows: list[np.ndarray]) -> list[list[int]]:
    found = zip(starts.reshape(len(rows), -1, 1), rows, strict=True)
    return [(np.arange(len(row)) >= start).sum(axis=0).tolist() for start, row in found]


def assert_packs_as(ours: Tokenizer, truth: Any) -> None:
    """Single texts and pairs, cut to all kinds of lengths."""
    first, second = random_texts(60, 25, seed=1), random_texts(60, 25, seed=2)
    for length in (8, 9, 13, 32, 33, 400):
        rows, starts, _ = pack(ours, [first], length)
        cut = truth(first, truncation=True, max_length=length, return_token_type_ids=True)
        assert [row.tolist() for row in rows] == cut["input_ids"]
        assert segments(starts, rows) == cut["token_type_ids"]
        rows, starts, whole = pack(ours, [first, second], length)
        cut = truth(first, second, truncation="longest_first", max_length=length, return_token_type_ids=True)
        assert [row.tolist() for row in rows] == cut["input_ids"]
        assert segments(starts, rows) == cut["token_type_ids"]
        assert whole.tolist() == [len(ids) for ids in truth(first, second)["input_ids"]]


def assert_words_as(ours: Tokenizer, truth: Any) -> None:
    sentences = [text.split() for text in TEXTS + random_texts(20, 20) if text.split() and "\u200b" not in text]
    for sentence, words in zip(sentences, ours.tokenize_words(sentences), strict=True):
        encoded = truth(sentence, is_split_into_words=True, add_special_tokens=False)
        assert [token for word in words for token in word] == encoded["input_ids"]
        found = [number for number, word in enumerate(words) for _ in word]
        assert found == encoded.word_ids()


def test_bert_tokenizes_as_transformers_does(bert_folder: Path, bert_truth: Any) -> None:
    assert_tokenizes_as(tokenizer_files.load(bert_folder), bert_truth)


def test_bert_packs_and_cuts_as_transformers_does(bert_folder: Path, bert_truth: Any) -> None:
    assert_packs_as(tokenizer_files.load(bert_folder), bert_truth)


def test_bert_splits_words_as_transformers_does(bert_folder: Path, bert_truth: Any) -> None:
    assert_words_as(tokenizer_files.load(bert_folder), bert_truth)


def test_roberta_tokenizes_as_transformers_does(roberta_folder: Path, roberta_truth: Any) -> None:
    assert_tokenizes_as(tokenizer_files.load(roberta_folder), roberta_truth)


def test_roberta_packs_and_cuts_as_transformers_does(roberta_folder: Path, roberta_truth: Any) -> None:
    assert_packs_as(tokenizer_files.load(roberta_folder), roberta_truth)


def test_roberta_splits_words_as_transformers_does(roberta_folder: Path, roberta: Folders) -> None:
    truth = transformers.RobertaTokenizerFast.from_pretrained(str(roberta["vocab.json"]), add_prefix_space=True)
    assert_words_as(tokenizer_files.load(roberta_folder), truth)


@pytest.mark.parametrize("name", ["vocab.txt", "keras_hub"])
def test_case_counts_where_the_folder_says_so(vocabulary: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "cased"
    if name == "vocab.txt":
        shutil.copytree(vocabulary, folder)
        (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False}))
    else:
        files = {"vocabulary.txt": vocabulary / "vocab.txt"}
        keras_hub_preset(folder, "BertTokenizer", files, lowercase=False)
    truth = transformers.BertTokenizerFast.from_pretrained(str(vocabulary), do_lower_case=False)
    assert_tokenizes_as(tokenizer_files.load(folder), truth)


def test_gpt2_has_no_special_tokens_around_a_text(roberta: Folders, tmp_path: Path) -> None:
    vocabulary = json.loads((roberta["vocab.json"] / "vocab.json").read_text())
    kept = {token: number for token, number in vocabulary.items() if not token.startswith("<")}
    renumbered = {token: number for number, token in enumerate([*kept, "<|endoftext|>"])}
    (tmp_path / "vocab.json").write_text(json.dumps(renumbered))
    shutil.copyfile(roberta["vocab.json"] / "merges.txt", tmp_path / "merges.txt")
    truth = transformers.GPT2TokenizerFast.from_pretrained(str(tmp_path))
    truth.pad_token = truth.eos_token
    assert_tokenizes_as(tokenizer_files.load(tmp_path), truth)


def test_two_texts_are_cut_as_the_tokenizers_library_cuts_them() -> None:
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    for room in range(1, 12):
        inner.enable_truncation(room, strategy="longest_first")
        for first in range(14):
            for second in range(14):
                ids = inner.encode(" ".join("a" * first), " ".join("b" * second)).ids
                assert truncated_lengths(first, second, room) == (ids.count(0), ids.count(1)), (first, second, room)


def same(left: Tokenizer, right: Tokenizer) -> bool:
    texts = TEXTS + random_texts(30, 20)
    fields = ("template", "pad_id", "unknown_id", "word_prefix", "digest")
    return left.tokenize(texts) == right.tokenize(texts) and all(
        getattr(left, name) == getattr(right, name) for name in fields
    )


def test_a_saved_tokenizer_is_read_as_the_same(bert: Folders, roberta: Folders, tmp_path: Path) -> None:
    for number, folder in enumerate([*bert.values(), *roberta.values()]):
        ours = tokenizer_files.load(folder)
        ours.save(tmp_path / str(number))
        assert same(ours, read(tmp_path / str(number)))


def test_the_digest_tells_tokenizers_apart(vocabulary: Path, roberta: Folders, tmp_path: Path) -> None:
    def changed(name: str, change: Callable[[str], str], **settings: Any) -> str:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "vocab.txt").write_text(change((vocabulary / "vocab.txt").read_text()))
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        return tokenizer_files.load(folder).digest

    plain = tokenizer_files.load(vocabulary).digest
    assert changed("copy", str) == plain
    digests = {
        plain,
        changed("longer", lambda text: text + "more\n"),
        changed("other", lambda text: text.replace("good", "goood")),
        changed("cased", str, do_lower_case=False),
        tokenizer_files.load(roberta["vocab.json"]).digest,
    }
    assert len(digests) == 5


def test_a_word_without_tokens_is_one_unknown_token(vocabulary: Path) -> None:
    ours = tokenizer_files.load(vocabulary)
    assert ours.tokenize_words([["good", "\u200b", "\x01", "film"]])[0][1:3] == [[1], [1]]


@pytest.fixture(scope="module")
def albert(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """A SentencePiece model as ALBERT has it, in Hugging Face's and in KerasHub's layout."""
    sentencepiece = pytest.importorskip("sentencepiece")
    root = tmp_path_factory.mktemp("albert")
    (root / "corpus.txt").write_text("\n".join(text for text in CORPUS if "\x00" not in text), encoding="utf8")
    plain = root / "plain"
    plain.mkdir()
    sentencepiece.SentencePieceTrainer.train(
        input=str(root / "corpus.txt"),
        model_prefix=str(plain / "spiece"),
        vocab_size=120,
        hard_vocab_limit=False,
        pad_id=0,
        unk_id=1,
        bos_id=-1,
        eos_id=-1,
        pad_piece="<pad>",
        control_symbols=["[CLS]", "[SEP]", "[MASK]"],
        minloglevel=2,
    )
    (plain / "config.json").write_text(json.dumps({"model_type": "albert"}))
    keras_hub_preset(root / "keras_hub", "AlbertTokenizer", {"vocabulary.spm": plain / "spiece.model"})
    return {"spiece.model": plain, "keras_hub": root / "keras_hub"}


def test_keras_hubs_albert_tokenizes_as_sentencepiece_does(albert: Folders, tmp_path: Path) -> None:
    import sentencepiece

    truth = sentencepiece.SentencePieceProcessor(model_file=str(albert["spiece.model"] / "spiece.model"))
    ours = tokenizer_files.load(albert["keras_hub"])
    texts = TEXTS + random_texts(30, 20)
    assert ours.tokenize(texts) == [truth.encode(text) for text in texts]
    start, end = truth.piece_to_id("[CLS]"), truth.piece_to_id("[SEP]")
    assert (ours.pad_id, ours.unknown_id) == (0, 1) and start > 1 < end
    rows, starts, _ = pack(ours, [["good film"], ["bad book"]], 64)
    first, second = truth.encode("good film"), truth.encode("bad book")
    assert rows[0].tolist() == [start, *first, end, *second, end]
    assert starts.tolist() == [len(first) + 2]
    ours.save(tmp_path / "saved")
    assert same(ours, read(tmp_path / "saved"))


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"readme.md": "x"}, "No tokenizer in .* \\(there: readme.md\\).*model.tokenizer"),
        ({}, "No tokenizer in"),
        ({"tokenizer.json": "{"}, "Cannot read .*tokenizer.json"),
        ({"tokenizer.json": '{"class_name": "BertTokeniser"}'}, "Did you mean 'BertTokenizer'"),
        (
            {"tokenizer.json": '{"class_name": "BertTokenizer", "config": {}}'},
            "has no file .*assets/tokenizer/vocabulary.txt",
        ),
        (
            {"tokenizer.json": '{"class_name": "RobertaTokenizer", "config": {}}'},
            "has no file .*assets/tokenizer/vocabulary.json",
        ),
        ({"tokenizer.json": '{"model": {"type": "Nonsense"}}'}, "Cannot read the tokenizer in"),
        ({"vocab.txt": "a\nb\n"}, "lacks one of \\[CLS\\], \\[SEP\\], \\[PAD\\]"),
        ({"vocab.txt": "[CLS]\n[SEP]\na\n"}, "lacks one of \\[CLS\\], \\[SEP\\], \\[PAD\\]"),
        ({"vocab.json": "[", "merges.txt": ""}, "Cannot read the tokenizer in"),
    ],
)
def test_a_folder_without_a_tokenizer_that_can_be_read_is_one_line(
    tmp_path: Path, files: dict[str, str], says: str
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ModelError, match=says) as caught:
        tokenizer_files.load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["spiece.model", "sentencepiece.bpe.model"])
def test_a_sentencepiece_model_that_is_none_is_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"not a model")
    with pytest.raises(ModelError, match=f"Cannot read the tokenizer in .*{name}.*model.tokenizer"):
        tokenizer_files.load(tmp_path)


XLNET = ["<unk>", "<s>", "</s>", "<cls>", "<sep>", "<pad>", "<mask>", "<eod>", "<eop>"]


def xlnet_truth(pieces: list[tuple[str, float]]) -> Any:
    found = transformers.XLNetTokenizer(vocab=pieces)
    assert [found.convert_tokens_to_ids(token) for token in XLNET] == list(range(len(XLNET)))
    return found


def test_xlnet_tokenizes_and_packs_as_transformers_does(tmp_path: Path) -> None:
    letters = [(letter, -5.0) for letter in "abcdefghijklmnopqrstuvwxyz.,"]
    words = [
        ("▁" + word, -2.0 - place / 9)
        for place, word in enumerate(["good", "bad", "lovely", "film", "book", "it", "was,", "a"])
    ]
    truth = xlnet_truth([*((token, 0.0) for token in XLNET), ("▁", -3.0), *letters, *words])
    truth.save_pretrained(tmp_path / "xlnet")
    ours = tokenizer_files.load(tmp_path / "xlnet")
    assert ours.tokenize(TEXTS) == truth(TEXTS, add_special_tokens=False)["input_ids"]
    assert (ours.pad_id, ours.unknown_id) == (truth.pad_token_id, truth.unk_token_id)
    assert_packs_as(ours, truth)
    assert_words_as(ours, truth)
    ours.save(tmp_path / "saved")
    assert same(ours, read(tmp_path / "saved"))


@pytest.fixture(scope="module")
def xlnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SentencePiece model with XLNet's special tokens."""
    sentencepiece = pytest.importorskip("sentencepiece")
    root = tmp_path_factory.mktemp("xlnet")
    (root / "corpus.txt").write_text("\n".join(text for text in CORPUS if "\x00" not in text), encoding="utf8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(root / "corpus.txt"),
        model_prefix=str(root / "spiece"),
        vocab_size=120,
        hard_vocab_limit=False,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        control_symbols=XLNET[3:],
        minloglevel=2,
    )
    (root / "config.json").write_text('{"model_type": "xlnet"}')
    return root


@pytest.mark.parametrize("options", [{}, {"do_lower_case": True}])
def test_xlnets_sentencepiece_model_tokenizes_as_transformers_does(
    xlnet: Path, tmp_path: Path, options: dict[str, bool]
) -> None:
    import sentencepiece

    (xlnet / "tokenizer_config.json").write_text(json.dumps(options))
    inner = sentencepiece.SentencePieceProcessor(model_file=str(xlnet / "spiece.model"))
    pieces = [(inner.id_to_piece(number), inner.get_score(number)) for number in range(inner.get_piece_size())]
    truth = transformers.XLNetTokenizer(vocab=pieces, **options)
    ours = tokenizer_files.load(xlnet)
    texts = ["a good film", "A GOOD film, it was ''quite'' superb", "naïve café", "the ``so-called'' plot", "zzz"]
    assert ours.tokenize(texts) == truth(texts, add_special_tokens=False)["input_ids"]
    pair = truth("good film", "bad book", return_token_type_ids=True)
    rows, starts, _ = pack(ours, [["good film"], ["bad book"]], 64)
    assert (rows[0].tolist(), segments(starts, list(rows))[0]) == (pair["input_ids"], pair["token_type_ids"])
    ours.save(tmp_path / "saved")
    assert read(tmp_path / "saved").tokenize(texts) == ours.tokenize(texts)


CHINESE = [
    "今天天气非常好。",
    "今天天气非常好、我们去 book 店 Café",
    "我爱北京天安门 2024年 3.14 mixed文本",
    "[SEP] a 今天",
]


@pytest.fixture(scope="module")
def roformer(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """A vocabulary with words of two characters, as RoFormer has it, in two layouts."""
    root = tmp_path_factory.mktemp("roformer")
    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [start + letter for letter in "abcdefghijklmnopqrstuvwxyz0123456789.," for start in ("", "##")]
    words = ["今天", "非常", "我们", "北京", "天安门", *"今天气非常好我们去店爱北京安门年文本。、", "good", "book"]
    lines = list(dict.fromkeys([*marks, *letters, *words]))
    (root / "vocab.txt").write_text("\n".join(lines) + "\n", encoding="utf8")
    (root / "config.json").write_text('{"model_type": "roformer"}')
    return {"vocab.txt": root, "tokenizer.json": root / "saved"}


@pytest.mark.parametrize("layout", ["vocab.txt", "tokenizer.json"])
def test_roformer_cuts_chinese_as_transformers_does(roformer: Folders, layout: str, tmp_path: Path) -> None:
    pytest.importorskip("rjieba")
    lines = (roformer["vocab.txt"] / "vocab.txt").read_text(encoding="utf8").split()
    truth = transformers.RoFormerTokenizer(vocab={token: number for number, token in enumerate(lines)})
    truth.save_pretrained(roformer["tokenizer.json"])
    ours = tokenizer_files.load(roformer[layout])
    texts = [
        *CHINESE[: 3 if layout == "vocab.txt" else 4],
        *TEXTS,
    ]  # a vocabulary alone says of no token that it is special
    assert ours.tokenize(texts) == truth(texts, add_special_tokens=False)["input_ids"]
    assert truth.convert_tokens_to_ids("非常") in ours.tokenize(CHINESE)[0]
    pair = truth(*CHINESE[:2], return_token_type_ids=True)
    rows, starts, _ = pack(ours, [[text] for text in CHINESE[:2]], 64)
    assert (rows[0].tolist(), segments(starts, list(rows))[0]) == (pair["input_ids"], pair["token_type_ids"])
    ours.save(tmp_path / "saved")
    again = read(tmp_path / "saved")
    assert again.tokenize(texts) == ours.tokenize(texts) and again.digest == ours.digest


def test_roformers_tokenizer_without_rjieba_is_one_line(roformer: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rjieba", None)
    with pytest.raises(
        ModelError, match="rjieba, not installed here. Type: pip install rjieba; or give model.tokenizer"
    ):
        tokenizer_files.load(roformer["vocab.txt"])


def test_a_roformer_that_names_berts_tokenizer_gets_it(roformer: Folders, tmp_path: Path) -> None:
    for name in ("vocab.txt", "config.json"):
        shutil.copyfile(roformer["vocab.txt"] / name, tmp_path / name)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    truth = transformers.BertTokenizerFast.from_pretrained(str(tmp_path))
    assert (
        tokenizer_files.load(tmp_path).tokenize(CHINESE[:3])
        == truth(CHINESE[:3], add_special_tokens=False)["input_ids"]
    )
