from __future__ import annotations

import random
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import scipy.special
from sklearn.preprocessing import MultiLabelBinarizer
from sklearn.utils.class_weight import compute_class_weight

from kft.data.table import Splits, Table
from kft.errors import DataError
from kft.recipe import Data
from kft.tasks import targets
from kft.tasks.targets import Target


def table(name: str = "train.csv", names: dict[str, tuple[str, ...]] | None = None, **columns: list[Any]) -> Table:
    rows = len(next(iter(columns.values())))
    return Table(pa.table(columns), name, list(range(2, rows + 2)), class_names=names or {})


def data(target: str | list[str] = "label", **fields: Any) -> Data:
    return Data(source="x", target=target, **fields)


def indices(found: Table, target: Target, options: Data) -> list[int]:
    return [int(row[0]) for row in targets.encode(found, target, options)]


def refusal(splits: Splits, options: Data, kind: Any = "labels") -> str:
    with pytest.raises(DataError) as caught:
        targets.study(splits, options, kind)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("cells", "labels"),
    [
        (["pos", "neg", "pos", "other"], ("neg", "other", "pos")),
        (["10", "9", "2", "9"], ("2", "9", "10")),
        ([10, 9, 2, 9], ("2", "9", "10")),
        ([3, -1, 0], ("-1", "0", "3")),
        ([1.0, 0.0, 1.0], ("0", "1")),
        ([0.5, 10.0, 1.0], ("0.5", "1", "10")),
        ([True, False, True], ("false", "true")),
        (["10", "9", "two"], ("10", "9", "two")),
        (["1", "01", "1.0", "0"], ("0", "01", "1", "1.0")),
        (["nan", "2", "10"], ("10", "2", "nan")),
    ],
)
def test_labels_of_any_type_have_one_order_whatever_the_rows_order(cells: list[Any], labels: tuple[str, ...]) -> None:
    rng = random.Random(0)
    for _ in range(6):
        found = table(label=cells)
        target = targets.study(Splits(found), data(), "labels")
        assert (target.kind, target.labels, target.outputs) == ("labels", labels, len(labels))
        names = [labels[index] for index in indices(found, target, data())]
        assert names == [targets.text_of(cell) for cell in cells]
        cells = rng.sample(cells, len(cells))


def test_numbers_of_one_split_are_the_same_labels_as_text_in_another() -> None:
    target = targets.study(Splits(table(label=["0", "1"])), data(), "labels")
    for cells in ([1, 0], [1.0, 0.0], ["1", "0"]):
        assert indices(table(label=cells), target, data()) == [1, 0]


def test_the_class_names_of_the_source_give_names_and_order() -> None:
    names = {"label": ("neutral", "entailment", "contradiction")}
    target = targets.study(Splits(table(names=names, label=[1, 0, 1])), data(), "labels")
    assert target.labels == names["label"]  # the third class has no row and keeps its place
    assert indices(table(names=names, label=[2, 0]), target, data()) == [2, 0]
    named = table(names=names, label=["contradiction", "neutral"])
    assert indices(named, targets.study(Splits(named), data(), "labels"), data()) == [2, 0]


@pytest.mark.parametrize("cell", [-1, 3])
def test_a_number_that_no_class_of_the_source_has_is_no_label(cell: int) -> None:
    splits = Splits(table(names={"label": ("a", "b", "c")}, label=[0, cell, 1]))
    assert f"train.csv line 3: no label in column 'label' (received {cell})" in refusal(splits, data())


def test_tags_take_their_names_from_the_source() -> None:
    names = {"tags": ("O", "B-PER", "I-PER")}
    found = table(names=names, tags=[[0, 1, 2], [0]])
    target = targets.study(Splits(found), data("tags"), "tags")
    assert (target.kind, target.labels) == ("tags", names["tags"])
    assert [row.tolist() for row in targets.encode(found, target, data("tags"))] == [[0, 1, 2], [0]]
    assert targets.rows(found, data("tags"), "tags") == [["O", "B-PER", "I-PER"], ["O"]]


LISTS = [["b", "a"], ["c"], [], ["a"]]
WANTED = MultiLabelBinarizer(classes=["a", "b", "c"]).fit_transform(LISTS)


@pytest.mark.parametrize(
    ("columns", "options"),
    [
        ({"label": LISTS}, data()),
        ({"label": ["b|a", "c", "", " a | "]}, data(label_separator="|")),
        ({"a": [1, 0, 0, 1], "b": [1, 0, 0, 0], "c": [0, 1, 0, 0]}, data(["a", "b", "c"])),
        ({"a": ["1", "0", "0", "1"], "b": ["1", "0", "0", "0"], "c": list("0100")}, data(["a", "b", "c"])),
        ({"a": [True, False, False, True], "b": [1.0, 0, 0, 0], "c": list("0100")}, data(["a", "b", "c"])),
    ],
)
def test_several_labels_are_read_as_scikit_learn_reads_them(columns: dict[str, list], options: Data) -> None:
    found = table(**columns)
    target = targets.study(Splits(found), options, "labels")
    assert (target.kind, target.labels) == ("multi_label", ("a", "b", "c"))
    rows = targets.encode(found, target, options)
    assert {row.dtype for row in rows} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(np.stack(rows), WANTED)
    assert targets.count(found, options, "multi_label") == {"a": 2, "b": 1, "c": 1}


def test_columns_of_several_labels_keep_the_order_of_the_recipe() -> None:
    found = table(a=[1, 0], b=[0, 1])
    assert targets.study(Splits(found), data(["b", "a"]), "labels").labels == ("b", "a")


@pytest.mark.parametrize("cell", [2, "maybe", None, 0.5])
def test_a_column_of_a_label_holds_0_or_1(cell: Any) -> None:
    message = refusal(Splits(table(a=[cell, None], b=[1, 0])), data(["b", "a"]))
    assert f"train.csv line 2: column 'a' has to be 0 or 1, received {cell!r}" in message


@pytest.mark.parametrize(
    ("cells", "options", "kind"),
    [
        (["a", None, "b"], data(), "labels"),
        (["a", "  ", "b"], data(), "labels"),
        ([1.0, float("nan"), 2.0], data(), "labels"),
        ([["O"], ["B", None], ["O"]], data(), "tags"),
        ([["a"], ["b", ""], []], data(), "labels"),
        (["a|b", None, "b"], data(label_separator="|"), "labels"),
    ],
)
def test_a_missing_label_is_refused_with_its_line(cells: list[Any], options: Data, kind: str) -> None:
    assert refusal(Splits(table(label=cells)), options, kind).startswith("train.csv line 3: no label in column 'label'")


@pytest.mark.parametrize(
    ("columns", "options", "kind"),
    [
        ({"label": ["a", "a"]}, data(), "labels"),
        ({"label": [["a"], ["a", "a"]]}, data(), "labels"),
        ({"label": [["O", "O"], ["O"]]}, data(), "tags"),
        ({"a": [1, 0]}, data(["a"]), "labels"),
    ],
)
def test_one_class_only_is_refused(columns: dict[str, list], options: Data, kind: str) -> None:
    message = refusal(Splits(table(**columns)), options, kind)
    assert "one class only" in message and "data.target" in message


@pytest.mark.parametrize("split", ["validation", "test"])
@pytest.mark.parametrize(
    ("train", "other", "kind"),
    [(["cat", "dog"], ["cat", "cats"], "labels"), ([["cat"], ["dog", "cat"]], [["dog"], ["dog", "cats"]], "tags")],
)
def test_a_label_that_only_another_split_has_is_refused(split: str, train: list, other: list, kind: str) -> None:
    splits = Splits(table(label=train), **{split: table("dev.csv", label=other)})
    message = refusal(splits, data(), kind)
    assert message.startswith("dev.csv line 3: label 'cats' is not in the training split. Did you mean 'cat'?")
    assert "cat, dog" in message


def test_an_unknown_target_column_lists_the_columns() -> None:
    for kind in ("labels", "values", "tags"):
        message = refusal(Splits(table(label=["a", "b"], text=["x", "y"])), data("lable"), kind)
        assert "Unknown column 'lable' in train.csv. Did you mean 'label'? Its columns: label, text." in message


def test_values_are_read_as_numbers() -> None:
    for cells in ([1, 2, 3], [1.0, 2.0, 3.0], ["1", "2.0", " 3e0 "]):
        found = targets.values(table(label=cells), data())
        assert found.dtype == np.float32 and found.tolist() == [[1], [2], [3]]
    target = targets.study(Splits(table(label=[1.0, 1.0])), data(), "values")
    assert (target.kind, target.labels, target.outputs) == ("values", (), 1)


@pytest.mark.parametrize("cell", ["nan", "inf", "-inf", "high", "", None, "1,5"])
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_value_that_is_no_finite_number_is_refused_with_its_line(cell: str | None, split: str) -> None:
    parts = {name: table(f"{name}.csv", label=["1", "2"]) for name in ("train", "validation", "test")}
    parts[split] = table(f"{split}.csv", label=["1", cell])
    message = refusal(Splits(**parts), data(), "values")
    assert message.startswith(f"{split}.csv line 3: column 'label' has to be a finite number, received {cell!r}.")


@pytest.mark.parametrize("kind", ["labels", "tags"])
def test_balanced_weights_are_scikit_learns(kind: Any) -> None:
    names = random.Random(4).choices("abcd", [8, 4, 2, 1], k=200)
    cells: list[Any] = names if kind == "labels" else [names[start : start + 10] for start in range(0, 200, 10)]
    found = table(label=cells)
    target = targets.study(Splits(found), data(), kind)
    weights = targets.weights_of_classes("balanced", found, target, data())
    expected = compute_class_weight("balanced", classes=np.array(target.labels), y=np.array(names))
    np.testing.assert_allclose(weights, expected, rtol=1e-12)


def test_named_weights_are_those_of_the_recipe() -> None:
    found = table(label=["a", "b", "c"])
    target = targets.study(Splits(found), data(), "labels")
    assert targets.weights_of_classes({"c": 3.0, "a": 0.5}, found, target, data()) == (0.5, 1.0, 3.0)
    assert targets.weights_of_classes("none", found, target, data()) is None
    with pytest.raises(DataError, match="unknown label 'aa'. Did you mean 'a'\\? Labels: a, b, c"):
        targets.weights_of_classes({"aa": 1.0}, found, target, data())


@pytest.mark.parametrize("kind", ["values", "multi_label"])
def test_weights_of_classes_need_classes(kind: Any) -> None:
    with pytest.raises(DataError, match="class_weights"):
        targets.weights_of_classes("balanced", table(label=["1", "2"]), Target(kind, ()), data())


def test_the_positive_label_is_the_last_or_the_recipes() -> None:
    splits = Splits(table(label=["no", "yes"]))
    assert targets.study(splits, data(), "labels").positive == 1
    assert targets.study(splits, data(positive_label="no"), "labels").positive == 0
    assert "'noo' is not a label. Did you mean 'no'?" in refusal(splits, data(positive_label="noo"))


@pytest.mark.parametrize("target", [Target("labels", ("é", "2"), 1), Target("values"), Target("tags", ("O", "B"))])
def test_a_target_is_read_back_from_its_json(target: Target) -> None:
    import json

    assert Target.read(json.loads(json.dumps(target.dump()))) == target


def test_probabilities_are_scipys() -> None:
    logits = np.random.default_rng(0).normal(0, 40, (5, 4)).astype(np.float32)
    one = targets.probabilities(logits, Target("labels", tuple("abcd")))
    np.testing.assert_allclose(one, scipy.special.softmax(logits.astype(np.float64), axis=-1), rtol=1e-12)
    several = targets.probabilities(logits, Target("multi_label", tuple("abcd")))
    np.testing.assert_allclose(several, scipy.special.expit(logits.astype(np.float64)), rtol=1e-12)


@pytest.mark.parametrize("cells", [["b", "a", "x", "a", "y"], [2, 1, 8, 1, 9], [2.0, 1.0, 8.0, 1.0, 9.0]])
def test_the_first_row_that_is_wrong_is_named_whatever_the_type(cells: list[Any]) -> None:
    splits = Splits(table(label=cells[:2]), validation=table("dev.csv", label=cells))
    assert f"dev.csv line 4: label '{targets.text_of(cells[2])}' is not in the training" in refusal(splits, data())
    missing = [*cells[:2], None, cells[0], None]
    assert "train.csv line 4: no label in column 'label' (received None)" in refusal(
        Splits(table(label=missing)), data()
    )


def test_single_labels_are_one_array_of_indices() -> None:
    names = {"label": ("same", "other", "same")}  # two numbers of one class
    found = table(names=names, label=[2, 1, 0, 2])
    assert targets.count(found, data(), "labels") == {"same": 3, "other": 1}
    encoded = targets.encode(table(label=["b", "a", "b"]), Target("labels", ("a", "b")), data())
    assert isinstance(encoded, np.ndarray) and encoded.dtype == np.int32 and encoded.tolist() == [[1], [0], [1]]
