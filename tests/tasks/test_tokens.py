from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import transformers

from kft.backbones import tokenizer_files
from kft.backbones.tokenizer import Tokenizer
from kft.data.encoded import Encoded, Ragged
from kft.data.table import Splits, Table
from kft.errors import DataError
from kft.recipe import Data
from kft.tasks import targets
from kft.tasks.task import Encoding
from kft.tasks.tokens import TOKEN_CLASSIFICATION, columns, encode, join, windows, words

DATA = Data(source="x", target="tags")


@pytest.fixture(scope="module")
def tokenizer(vocabulary: Path) -> Tokenizer:
    return tokenizer_files.load(vocabulary)


def sentences(count: int, most: int = 60, seed: int = 0) -> list[list[str]]:
    """Words of one to some ten tokens."""
    rng = random.Random(seed)
    words = ["good", "film", "unbelievably", "Bad,", "its", "a", "superbfilm", "zzzzzzzzz", "日本"]
    return [[rng.choice(words) for _ in range(rng.randint(1, most))] for _ in range(count)]


def table(rows: list[list[str]], tags: list[list[str]] | None = None) -> Table:
    columns = {"tokens": rows, **({} if tags is None else {"tags": tags})}
    return Table(pa.table(columns), "train.conll", list(range(1, len(rows) + 1)))


def tagged(rows: list[list[str]], seed: int = 1) -> Table:
    rng = random.Random(seed)
    return table(rows, [["O" if word == "a" else rng.choice(["O", "B-X", "I-X"]) for word in row] for row in rows])


def ragged(array: Any) -> Ragged:
    assert isinstance(array, Ragged)
    return array


@pytest.mark.parametrize("room", [6, 7, 10, 30, 64])
def test_windows_have_room_and_own_each_word_exactly_once(room: int) -> None:
    rng = random.Random(room)
    for _ in range(300):
        longest = rng.choice([1, 2, min(room, 5), room])
        lengths = [rng.randint(1, longest) for _ in range(rng.randint(1, 80))]
        found = windows(lengths, room)
        owned = [word for _, _, first, last in found for word in range(first, last)]
        assert owned == list(range(len(lengths)))
        for first, last, own_first, own_last in found:
            assert 0 < sum(lengths[first:last]) <= room
            assert first <= own_first <= own_last <= last
        assert (len(found) == 1) is (sum(lengths) <= room)


def test_a_word_is_owned_by_a_window_that_sees_around_it() -> None:
    lengths, room = [1] * 400, 40
    for first, last, own_first, own_last in windows(lengths, room):
        before, after = own_first - first, last - own_last
        assert before >= room // 4 - 1 or first == 0
        assert after >= room // 4 - 1 or last == len(lengths)


def test_the_tag_of_a_word_stands_at_its_first_token_as_transformers_aligns_it(
    tokenizer: Tokenizer, vocabulary: Path
) -> None:
    found = tagged(sentences(40, most=12))
    target = targets.study(Splits(found), DATA, "tags")
    encoded = encode(found, Encoding(DATA, tokenizer, 512), target)
    truth = transformers.BertTokenizerFast.from_pretrained(str(vocabulary))
    rows = zip(found.column("tokens"), found.column("tags"), strict=True)
    for number, (sentence, tags) in enumerate(rows):
        expected = truth(sentence, is_split_into_words=True)
        assert ragged(encoded.inputs["token_ids"])[number].tolist() == expected["input_ids"]
        aligned, before = [], None
        for word in expected.word_ids():
            aligned.append(None if word is None or word == before else target.labels.index(tags[word]))
            before = word
        weights, ours = ragged(encoded.weights)[number], ragged(encoded.targets)[number]
        assert [int(tag) if weight else None for tag, weight in zip(ours, weights, strict=True)] == aligned
    assert encoded.owners is not None and encoded.owners.tolist() == list(range(len(found)))


def owned_words(encoded: Encoded) -> dict[int, int]:
    assert encoded.owners is not None
    counts = dict.fromkeys(map(int, encoded.owners), 0)
    for row, owner in enumerate(encoded.owners):
        counts[int(owner)] += int(ragged(encoded.weights)[row].sum())
    return counts


@pytest.mark.parametrize("sequence_length", [8, 12, 32])
def test_long_sentences_come_in_windows_and_no_word_is_lost(tokenizer: Tokenizer, sequence_length: int) -> None:
    found = tagged(sentences(30))
    target = targets.study(Splits(found), DATA, "tags")
    encoded = encode(found, Encoding(DATA, tokenizer, sequence_length), target)
    ids = ragged(encoded.inputs["token_ids"])
    assert ids.lengths.max() <= sequence_length and len(encoded) > len(found)
    assert all(ids[row][0] == 2 and ids[row][-1] == 3 for row in range(len(ids)))  # [CLS] and [SEP]
    assert owned_words(encoded) == {number: len(words) for number, words in enumerate(found.column("tokens"))}
    tags: list[list[int]] = [[] for _ in range(len(found))]
    for row, owner in enumerate(encoded.owners):  # type: ignore[arg-type]
        tags[owner] += ragged(encoded.targets)[row][ragged(encoded.weights)[row] > 0].tolist()
    assert [[target.labels[tag] for tag in row] for row in tags] == found.column("tags")


def test_the_logits_of_windows_join_to_those_of_the_words(tokenizer: Tokenizer) -> None:
    """A model that says of each token its id is asked through windows, and without."""
    found = table(sentences(25))
    whole = encode(found, Encoding(DATA, tokenizer, 10_000), None)
    cut = encode(found, Encoding(DATA, tokenizer, 14), None)

    def model(encoded: Encoded) -> list[np.ndarray]:
        ids = ragged(encoded.inputs["token_ids"])
        longest = int(ids.lengths.max())
        return [np.stack([ids.padded([row], longest, 0)[0]] * 3, axis=1) for row in range(len(ids))]

    assert len(cut) > len(whole) == len(found)
    joined = join(model(cut), cut)
    for sentence, one, other in zip(found.column("tokens"), joined, join(model(whole), whole), strict=True):
        first = [ids[0] for ids in tokenizer.tokenize_words([sentence])[0]]
        assert one.shape == (len(sentence), 3)
        assert one[:, 0].tolist() == other[:, 0].tolist() == first


def test_a_word_is_answered_by_its_own_window(tokenizer: Tokenizer) -> None:
    encoded = encode(table([["a"] * 50]), Encoding(DATA, tokenizer, 12), None)
    rows = [np.full((12, 1), row) for row in range(len(encoded))]
    answered = join(rows, encoded)[0][:, 0].tolist()
    assert len(answered) == 50 and answered == sorted(answered) and set(answered) == set(range(len(encoded)))


def test_words_that_tokenize_to_nothing_keep_their_place(tokenizer: Tokenizer) -> None:
    rows = [["good", "\u200b", "film"], ["\x01"]]
    found = table(rows, [["B-X", "I-X", "O"], ["O"]])
    target = targets.study(Splits(found), DATA, "tags")
    encoded = encode(found, Encoding(DATA, tokenizer, 16), target)
    ids = ragged(encoded.inputs["token_ids"])
    good, film = (tokenizer.engine.id(word) for word in ("good", "film"))
    assert ids[0].tolist() == [2, good, 1, film, 3] and ids[1].tolist() == [2, 1, 3]
    logits = [np.eye(5)[:, :3], np.ones((5, 3))]
    assert [len(answer) for answer in join(logits, encoded)] == [3, 1]


def test_a_word_longer_than_a_window_keeps_what_fits(tokenizer: Tokenizer) -> None:
    encoded = encode(table([["good", "x" * 40, "film"]]), Encoding(DATA, tokenizer, 10), None)
    assert ragged(encoded.inputs["token_ids"]).lengths.max() == 10
    assert owned_words(encoded) == {0: 3}


def test_a_text_is_split_at_white_space() -> None:
    plain = Table(pa.table({"tokens": ["a  good\tfilm ", "bad"]}), "x.csv")
    assert words(plain, ["tokens"]) == [["a", "good", "film"], ["bad"]]


@pytest.mark.parametrize("cells", [[["a"], []], ["a", "  "], [["a"], None]])
def test_a_sentence_without_words_is_refused_with_its_place(cells: list[Any]) -> None:
    with pytest.raises(DataError, match="x.conll line 9: empty text in column 'tokens'"):
        words(Table(pa.table({"tokens": cells}), "x.conll", [1, 9]), ["tokens"])


def test_another_number_of_tags_than_words_is_refused_with_its_place(tokenizer: Tokenizer) -> None:
    found = table([["a", "b"], ["a", "b", "c"]], [["O", "B-X"], ["O", "O"]])
    target = targets.study(Splits(found), DATA, "tags")
    with pytest.raises(DataError, match="train.conll line 2: 3 words but 2 tags"):
        encode(found, Encoding(DATA, tokenizer, 16), target)


def test_one_column_of_words_is_read() -> None:
    found = table([["a"]])
    assert columns(found, DATA) == ["tokens"]
    with pytest.raises(DataError, match="one column of words, received 2: a, b"):
        columns(found, DATA.model_copy(update={"inputs": ["a", "b"]}))
    with pytest.raises(DataError, match="Unknown column 'token' .* Did you mean 'tokens'"):
        columns(found, DATA.model_copy(update={"inputs": ["token"]}))
    assert TOKEN_CLASSIFICATION.columns is columns
