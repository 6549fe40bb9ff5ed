"""Question answering: contexts in windows, answers as tokens, and back."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from kft.backbones import tokenizer_files
from kft.backbones.tokenizer import Tokenizer
from kft.data import sources
from kft.data.encoded import Encoded, Ragged, read, write
from kft.data.table import Splits, Table
from kft.errors import DataError
from kft.recipe import Data
from kft.tasks import spans, targets
from kft.tasks.questions import QUESTION_ANSWERING, columns, encode, texts_beside, windows
from kft.tasks.spans import best, join
from kft.tasks.targets import Target
from kft.tasks.task import Encoding

DATA = Data(source="x", inputs=["question", "context"], target="answers")
# Accents, capitals, punctuation within words, CJK, emoji, combining marks, odd white space, very long words.
CONTEXTS = [
    "The film, very Good, was made in Paris (1889).",
    "  Café de l'Été\u00a0— naïve  façades; “quoted” words…",
    "日本の映画 was good. 東京タワー!",
    "e\u0301te\u0301 👩‍👩‍👧 emoji and\ttabs\nand lines",
    "zzzzzzzzzzzz good film " * 8,
]


@pytest.fixture(scope="module")
def tokenizer(vocabulary: Path) -> Tokenizer:
    return tokenizer_files.load(vocabulary)


def table(rows: list[tuple[str, str, Any]]) -> Table:
    questions, contexts, answers = (list(column) for column in zip(*rows, strict=True))
    return Table(pa.table({"question": questions, "context": contexts, "answers": answers}), "train.json")


def squad(*answers: tuple[str, int]) -> dict[str, list[Any]]:
    return {"text": [text for text, _ in answers], "answer_start": [start for _, start in answers]}


def ragged(array: Any) -> Ragged:
    assert isinstance(array, Ragged)
    return array


@pytest.mark.parametrize(
    ("tokens", "room", "shared"), [(1, 5, 2), (5, 5, 2), (6, 5, 2), (100, 7, 3), (30, 6, 50), (0, 4, 1)]
)
def test_windows_leave_nothing_out_and_share_what_they_are_told_to(tokens: int, room: int, shared: int) -> None:
    found = list(windows(tokens, room, shared))
    assert found[0][0] == 0 and found[-1][1] == tokens and all(end - start <= room for start, end in found)
    for (_, end), (start, _) in itertools.pairwise(found):
        assert end - start == min(shared, room // 2)


@pytest.mark.parametrize("length", [40, 48, 64])
def test_an_answer_is_found_again_from_its_tokens(tokenizer: Tokenizer, length: int) -> None:
    """Of every word of hard texts: a model that is sure of the right tokens says the word."""
    rows = []
    for context in CONTEXTS:
        for word in dict.fromkeys(context.split()):
            rows.append(("which film?", context, squad((word, context.find(word)))))
    encoded = encode(table(rows), Encoding(DATA, tokenizer, length), Target("spans"))
    assert ragged(encoded.inputs["token_ids"]).lengths.max() <= length
    wanted = np.asarray(encoded.targets)
    sure = [np.full((2, count), -9.0, np.float32) for count in ragged(encoded.inputs["token_ids"]).lengths]
    for row, places in enumerate(wanted):
        sure[row][[0, 1], places] = 9.0 if places[0] else 1.0
    seen = set(encoded.owners[wanted[:, 0] > 0].tolist())  # type: ignore[index]
    assert len(seen) == len(rows)  # each answer is whole in a window
    for (_, context, answers), tokens in zip(rows, join(sure, encoded), strict=True):
        said = best(tokens, context, unanswerable=True)
        (word,), (start,) = answers["text"], answers["answer_start"]
        # A token that is more than the word, as 'Paris' in '(1889).', is as near as tokens come.
        assert said.start <= start and said.end >= start + len(word) and said.text == context[said.start : said.end]
        assert said.probability > 0.9


def test_special_tokens_and_segments_are_those_of_a_pair(tokenizer: Tokenizer) -> None:
    from kft.backbones.tokenizer import pack

    question, context = "was the film good?", "the film was very good"
    encoded = encode(table([(question, context, squad(("film", 4)))]), Encoding(DATA, tokenizer, 64), None)
    ids, starts, _ = pack(tokenizer, [[question], [context]], 64)
    np.testing.assert_array_equal(ragged(encoded.inputs["token_ids"])[0], ids[0])
    np.testing.assert_array_equal(encoded.inputs["segment_starts"], starts)  # type: ignore[arg-type]
    assert encoded.targets is None and encoded.weights is None


def test_a_stride_makes_more_windows_and_half_a_window_is_the_most(tokenizer: Tokenizer) -> None:
    rows = table([("what?", "good film " * 60, squad(("good", 0)))])
    counts = [
        len(encode(rows, Encoding(DATA, tokenizer, 32, stride=stride), Target("spans"))) for stride in (0, 8, 14, 99)
    ]
    assert counts[0] < counts[1] < counts[2] <= counts[3]
    assert len(encode(rows, Encoding(DATA, tokenizer, 30), Target("spans"))) == len(
        encode(rows, Encoding(DATA, tokenizer, 30, stride=10), Target("spans"))
    )


def test_a_window_without_the_answer_points_to_no_answer(tokenizer: Tokenizer) -> None:
    context = "good " * 40 + "film"
    encoded = encode(table([("what?", context, squad(("film", 200)))]), Encoding(DATA, tokenizer, 32), Target("spans"))
    wanted = np.asarray(encoded.targets)
    assert (wanted[:-1] == 0).all() and (wanted[-1] > 0).all()


def test_what_is_beside_the_arrays_comes_back_from_the_disk(tokenizer: Tokenizer, tmp_path: Path) -> None:
    rows = [("q?", context, squad((context.split()[0], context.find(context.split()[0])))) for context in CONTEXTS]
    encoded = encode(table(rows), Encoding(DATA, tokenizer, 24), Target("spans"))
    write(encoded, tmp_path / "split")
    again = read(tmp_path / "split")
    assert list(texts_beside(again, "contexts")) == CONTEXTS
    assert [json.loads(text) for text in texts_beside(again, "answers")] == [list(row[2]["text"]) for row in rows]
    np.testing.assert_array_equal(ragged(again.beside["offsets"]).values, ragged(encoded.beside["offsets"]).values)


# The best answer


def tokens(begins: list[float], ends: list[float], window: int = 0) -> np.ndarray:
    """The first token stands for no answer, the others are letters of a context."""
    count = len(begins)
    places = [(-1, -1), *((i, i + 1) for i in range(count - 1))]
    return np.column_stack([np.full(count, window), begins, ends, places])


def test_the_best_span_is_the_one_that_trying_all_finds() -> None:
    rng = np.random.default_rng(0)
    context = "".join(rng.choice(list("abcdefgh"), 60))
    for _ in range(50):
        begins, ends = rng.normal(size=61), rng.normal(size=61)
        tried = {(i - 1, j): begins[i] + ends[j] for i in range(1, 61) for j in range(i, min(i + spans.LONGEST, 61))}
        start, end = max(tried, key=lambda pair: tried[pair])
        said = best(tokens(list(begins), list(ends)), context, unanswerable=False)
        assert (said.start, said.end, said.text) == (start, end, context[start:end])


def test_no_answer_is_said_where_every_window_is_surer_of_it() -> None:
    sure_of_none, sure_of_b = tokens([5, 0, 1], [5, 0, 1]), tokens([1, 0, 4], [1, 0, 4], window=1)
    both = np.concatenate([sure_of_none, sure_of_b])
    assert best(sure_of_none, "ab", unanswerable=True).text == ""
    assert best(sure_of_none, "ab", unanswerable=False).text == "b"
    assert best(both, "ab", unanswerable=True).text == "b"  # one window has it
    share = np.exp([5, 0, 1]) / np.exp([5, 0, 1]).sum()
    assert best(sure_of_none, "ab", unanswerable=True).probability == pytest.approx(share[0] ** 2)


# Data


def test_squads_own_files_are_read(tmp_path: Path) -> None:
    answer = {"text": "Paris", "answer_start": 13}
    asked = [
        {"id": "1", "question": "Where?", "answers": [answer, {"text": "in Paris", "answer_start": 10}]},
        {"id": "2", "question": "When?", "answers": [], "is_impossible": True},
    ]
    paragraphs = [{"context": "The tower is Paris' own.", "qas": asked}]
    file = tmp_path / "train.json"
    file.write_text(json.dumps({"version": "v2.0", "data": [{"title": "Tower", "paragraphs": paragraphs}]}))
    found = sources.load(str(file), DATA)["train"]
    assert found.names == ["id", "title", "context", "question", "answers"] and len(found) == 2
    assert found.column("answers")[0] == squad(("Paris", 13), ("in Paris", 10))
    assert targets.study(Splits(found), DATA, "spans") == Target("spans", unanswerable=True)
    asked[1].pop("answers")  # of a test whose answers are kept apart
    file.write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
    assert sources.load(str(file), DATA)["train"].column("answers")[1] is None
    del asked[1]["question"]
    file.write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
    with pytest.raises(DataError, match="article 1 paragraph 1 question 2: no 'question', which SQuAD's layout has"):
        sources.load(str(file), DATA)


@pytest.mark.parametrize(
    "cell",
    [
        squad(("film", 9)),
        squad(("film", 0)),  # said to be elsewhere: the nearest one counts
        squad(("film", 10)),
        squad((" film ", 8)),  # white space around it is no part of it
        {"text": "film", "answer_start": [9]},
        [{"text": "film", "answer_start": 9}],
        "film",
        ["film", "the film"],
    ],
)
def test_answers_come_in_several_shapes(cell: Any, tokenizer: Tokenizer, tmp_path: Path) -> None:
    file = tmp_path / "train.parquet"
    pyarrow.parquet.write_table(pa.table({"question": ["q?"], "context": ["the good film"], "answers": [cell]}), file)
    (gold,) = spans.read(sources.load(str(file), DATA)["train"], "answers", ["the good film"])
    assert (gold.start, gold.end, gold.texts[0]) == (9, 13, "film")


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([("q?", "the film", "book")], "row 1: the answer 'book' is not in the context"),
        ([("q?", "the film", squad(("film", "x")))], "row 1: column 'answers' has to hold answers"),  # type: ignore[arg-type]
        ([("q?", "the film", 3)], "row 1: column 'answers' has to hold answers, received '3'"),
        ([("q?", "the film", None), ("q?", "the film", "")], "no question has an answer in column 'answers'"),
    ],
)
def test_what_is_no_answer_is_refused(rows: list[tuple[str, str, Any]], said: str) -> None:
    with pytest.raises(DataError, match=said):
        targets.study(Splits(table(rows)), DATA, "spans")


def test_two_columns_are_needed() -> None:
    rows = table([("q?", "the film", "film")])
    assert columns(rows, Data(source="x")) == ["question", "context"]
    with pytest.raises(DataError, match="a column of questions and one of contexts, received 1: question"):
        targets.study(Splits(rows), Data(source="x", inputs=["question"], target="answers"), "spans")
    with pytest.raises(DataError, match="a column of questions and one of contexts, received 1: question"):
        columns(rows, Data(source="x", inputs=["question"]))
    with pytest.raises(DataError, match="'paragraph'"):
        columns(rows, Data(source="x", inputs=["question", "paragraph"]))


def test_the_loss_is_that_of_the_places_of_all_windows(tokenizer: Tokenizer) -> None:
    rng = np.random.default_rng(1)
    encoded: Encoded = encode(
        table([("q?", "good film " * 20, squad(("film", 5)))]), Encoding(DATA, tokenizer, 24), Target("spans")
    )
    lengths = ragged(encoded.inputs["token_ids"]).lengths
    logits = [rng.normal(size=(2, 32)) for _ in lengths]
    wanted = []
    for row, length in enumerate(lengths):
        for which, place in enumerate(np.asarray(encoded.targets)[row]):
            share = np.exp(logits[row][which, :length])
            wanted.append(-np.log(share[place] / share.sum()))
    assert spans.loss(logits, encoded) == pytest.approx(np.mean(wanted))
    assert QUESTION_ANSWERING.targets == "spans"


def test_a_word_is_found_in_every_shuffled_context(tokenizer: Tokenizer) -> None:
    rng = random.Random(0)
    words = ["good", "film", "unbelievably", "Bad,", "its", "a", "日本", "(1889)"]
    for _ in range(30):
        context = " ".join(rng.choices(words, k=rng.randint(1, 60)))
        ((ids, places),) = tokenizer.tokenize_with_offsets([context])
        assert ids == tokenizer.tokenize([context])[0] and len(ids) == len(places)
        assert (places[1:, 0] >= places[:-1, 0]).all() and not any(
            context[a:b] != context[a:b].strip() for a, b in places
        )
