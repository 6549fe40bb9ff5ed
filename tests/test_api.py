"""What a script uses: data, backbones and models as values, and a finished run to predict with."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kft
from kft.errors import BackendError, DataError, RecipeError, RunFolderError

pytestmark = pytest.mark.backend

Variant = Callable[[dict, dict[str, Any]], dict]
GOOD, BAD, PLAIN = ["good", "great", "fine"], ["bad", "awful", "poor"], ["the", "film", "book", "was", "very"]


@pytest.fixture(scope="module")
def bert(quick: dict) -> dict[str, Any]:
    return {name: quick["model"][name] for name in ("architecture", "config", "tokenizer", "pretrained")}


@pytest.fixture(scope="module")
def carry_out(
    backend: str, quick: dict, variant: Variant, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., kft.Run]:
    """Runs the quick recipe with changes and loads the run."""

    def go(**changes: Any) -> kft.Run:
        folder = tmp_path_factory.mktemp("run") / "run"
        fixed = {"backend": backend, "output.directory": str(folder), "train.metrics": None}
        return kft.load_run(kft.run(variant(quick, {**fixed, **changes})).run)

    return go


def write_rows(file: Path, rows: list[dict[str, Any]]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf8")
    return str(file)


# Scripts


def test_a_script_compiles_and_fits_the_model_itself(backend: str, quick: dict, bert: dict[str, Any]) -> None:
    import keras

    data = kft.load_data(quick["data"]["source"], validation=0.2)
    assert data.labels == ("negative", "positive")
    backbone = kft.load_backbone(**bert)
    assert (backbone.modality, backbone.pooling) == ("text", "pooled")
    model = kft.build_model(data, backbone, pooling="mean")
    assert isinstance(model, keras.Model)
    batches = kft.encode(data, backbone, sequence_length=8, batch_size=16)
    assert set(batches) == {"train", "validation"}
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=keras.optimizers.Adam(3e-2), loss=loss, weighted_metrics=["accuracy"])
    history = model.fit(
        batches["train"], validation_data=batches["validation"], epochs=4, shuffle=False, verbose=0
    ).history
    assert history["val_accuracy"][-1] >= 0.9
    assert history["loss"][-1] < history["loss"][0]


def test_an_epoch_of_a_script_has_the_order_of_that_epoch(backend: str, quick: dict, bert: dict[str, Any]) -> None:
    import keras

    data = kft.load_data(quick["data"]["source"], validation=0)
    backbone = kft.load_backbone(**bert)
    train = kft.encode(data, backbone, sequence_length=8, batch_size=16, seed=3)["train"]
    batches = train.batches
    seen: list[np.ndarray] = []
    whole = train.batches.make

    class Recorder(type(batches)):  # type: ignore[misc]
        def make(self, rows: np.ndarray, length: int) -> Any:
            seen.append(np.asarray(rows))
            return whole(rows, length)

    train.batches = Recorder(**{name: getattr(batches, name) for name in batches.__dataclass_fields__})
    model = kft.build_model(data, backbone)
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(train, epochs=2, shuffle=False, verbose=0)
    expected = [rows for epoch in (0, 1) for rows, _ in batches.plan(epoch)]
    for rows, wanted in zip(seen[-len(expected) :], expected, strict=True):
        np.testing.assert_array_equal(rows, wanted)
    assert not np.array_equal(expected[0], expected[len(batches)])


def test_data_are_encoded_once(
    backend: str, quick: dict, bert: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KFT_CACHE", str(tmp_path))
    data, backbone = kft.load_data(quick["data"]["source"], validation=0), kft.load_backbone(**bert)
    for _ in range(2):
        kft.encode(data, backbone, sequence_length=8)
    files = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.npy")}
    assert files
    kft.encode(data, backbone, sequence_length=8)
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.npy")} == files
    kft.encode(data, backbone, sequence_length=9)
    assert len(list(tmp_path.rglob("*.npy"))) == 2 * len(files)


def test_options_are_checked_as_a_recipes_fields_are(backend: str, quick: dict) -> None:
    with pytest.raises(RecipeError, match=r"load_data: Unknown field 'data.targets'. Did you mean 'data.target'"):
        kft.load_data(quick["data"]["source"], targets="label")
    with pytest.raises(RecipeError, match="load_backbone: Field 'model.sequence_length'"):
        kft.load_backbone("somewhere", sequence_length=1)


def test_another_backend_is_refused_once_one_is_active(backend: str) -> None:
    assert kft.use_backend(backend) == backend
    other = "jax" if backend != "jax" else "torch"
    if other not in kft.backend.installed():
        pytest.skip(f"{other} is not installed")
    with pytest.raises(BackendError, match=f"already runs on '{backend}'"):
        kft.use_backend(other)


# A finished run


def test_predictions_are_in_order_with_probabilities(finished_run: Path) -> None:
    run = kft.load_run(finished_run)
    found = run.predict(["the film was good", "a bad book", "the phone was great and fine"])
    assert [row["label"] for row in found] == ["positive", "negative", "positive"]
    for row in found:
        assert set(row["probabilities"]) == {"negative", "positive"} == set(run.labels)
        assert sum(row["probabilities"].values()) == pytest.approx(1)
        assert max(row["probabilities"], key=row["probabilities"].get) == row["label"]
    assert run.predict([]) == []


def test_a_prediction_does_not_depend_on_its_neighbours(finished_run: Path) -> None:
    run = kft.load_run(finished_run)
    texts = ["the film was good", "a bad book and a bad table", "so"]
    together = [row["probabilities"]["positive"] for row in run.predict(texts)]
    alone = [run.predict([text])[0]["probabilities"]["positive"] for text in texts]
    assert together == pytest.approx(alone, abs=1e-5)


def test_files_are_predicted_without_targets(finished_run: Path, quick: dict, tmp_path: Path) -> None:
    run = kft.load_run(finished_run)
    file = tmp_path / "new.csv"
    file.write_text("id,text\n1,the film was good\n2,a bad book\n", encoding="utf8")
    assert run.predict_file(str(file)) == run.predict(["the film was good", "a bad book"])


def test_a_run_is_evaluated_on_its_own_splits_and_on_other_files(finished_run: Path, quick: dict) -> None:
    run = kft.load_run(finished_run)
    own = run.evaluate()
    assert own.metrics["test"] == pytest.approx(run.report["metrics"]["test"], abs=1e-6)
    assert own.metrics["validation"] == pytest.approx(run.report["metrics"]["validation"], abs=1e-6)
    whole = run.evaluate(quick["data"]["source"])
    assert set(whole.metrics) == {"test"} and whole.metrics["test"]["accuracy"] >= 0.9


@pytest.mark.parametrize("examples", [[("one", "two")], [("one", "two", "three")]])
def test_a_wrong_number_of_inputs_is_refused(finished_run: Path, examples: list[Any]) -> None:
    with pytest.raises(DataError, match=rf"reads 1 input\(s\), text; received {len(examples[0])}"):
        kft.load_run(finished_run).predict(examples)


def test_an_unknown_run_is_refused_with_the_nearest_name(finished_run: Path) -> None:
    with pytest.raises(RunFolderError, match=r"No run at .*rum'. Did you mean 'run'\?"):
        kft.load_run(finished_run.with_name("rum"))


# Kinds of text tasks


def test_pairs(carry_out: Callable[..., kft.Run], tmp_path: Path) -> None:
    rng = random.Random(2)
    rows = []
    for i in range(48):
        left, right = rng.choice([GOOD, BAD]), rng.choice([GOOD, BAD])
        label = "same" if left is right else "different"
        rows.append({"one": rng.choice(left), "two": f"{rng.choice(right)} {i % 3}", "label": label})
    source = write_rows(tmp_path / "pairs.jsonl", rows)
    run = carry_out(**{"data.source": source, "data.inputs": ["one", "two"], "train.epochs": 1, "data.test": 0})
    found = run.predict([("good", "fine"), ("good", "bad")])
    assert len(found) == 2 and set(found[0]["probabilities"]) == {"same", "different"}
    swapped = run.predict([("fine", "good")])[0]["probabilities"]
    assert swapped != pytest.approx(found[0]["probabilities"], abs=1e-7), "which text is the second one counts"
    with pytest.raises(DataError, match=r"reads 2 input\(s\), one, two; received 1. Give pairs"):
        run.predict(["good"])


def test_regression_is_scored_as_scipy_does(carry_out: Callable[..., kft.Run], tmp_path: Path) -> None:
    from scipy import stats

    rng = random.Random(3)
    rows = []
    for _ in range(96):
        words = [rng.choice(GOOD + BAD) for _ in range(6)]
        rows.append({"text": " ".join(words), "score": sum(word in GOOD for word in words) / 6})
    source = write_rows(tmp_path / "scores.jsonl", rows)
    run = carry_out(**{"task": "text_regression", "data.source": source, "data.target": "score", "train.epochs": 6})
    test = kft.load_data(source, task="text_regression", target="score", test=0.2).splits.test
    assert test is not None
    values = [row["value"] for row in run.predict(test.column("text"))]
    truth, scores = test.column("score"), run.report["metrics"]["test"]
    assert scores["pearson"] == pytest.approx(stats.pearsonr(truth, values)[0], abs=1e-6)
    assert scores["spearmanr"] == pytest.approx(stats.spearmanr(truth, values)[0], abs=1e-6)
    assert scores["mse"] == pytest.approx(np.mean((np.asarray(truth) - values) ** 2), abs=1e-6)
    assert scores["mse"] == pytest.approx(scores["loss"], abs=1e-6)
    assert scores["pearson"] > 0.8


def test_several_labels_an_example(carry_out: Callable[..., kft.Run], tmp_path: Path) -> None:
    from sklearn.metrics import f1_score

    rng = random.Random(4)
    rows = []
    for _ in range(128):
        picked = [name for name in ("nice", "nasty") if rng.random() < 0.5]
        words = [rng.choice(GOOD if name == "nice" else BAD) for name in picked] * 2
        words += [rng.choice(PLAIN) for _ in range(6 - len(words))]
        rng.shuffle(words)
        rows.append({"text": " ".join(words), "label": picked})
    source = write_rows(tmp_path / "labels.jsonl", rows)
    run = carry_out(**{"data.source": source, "train.epochs": 8})
    assert run.labels == ("nasty", "nice")
    both = run.predict(["good bad film bad good the", "good the film good was book", "the film was the book very"])
    assert [row["label"] for row in both] == [["nasty", "nice"], ["nice"], []]
    assert all(0 <= p <= 1 for row in both for p in row["probabilities"].values())
    test = kft.load_data(source, test=0.2).splits.test
    assert test is not None
    found = [[name in row["label"] for name in run.labels] for row in run.predict(test.column("text"))]
    truth = [[name in labels for name in run.labels] for labels in test.column("label")]
    assert run.report["metrics"]["test"]["f1_micro"] == pytest.approx(f1_score(truth, found, average="micro"))
    assert run.report["metrics"]["test"]["f1_micro"] > 0.9


def conll(file: Path, sentences: int, seed: int) -> str:
    """Writes sentences in which a good word begins an entity, and a good word after it goes on with it."""
    rng = random.Random(seed)
    lines = []
    for number in range(sentences):
        before = "O"
        for _ in range(40 if number % 8 == 0 else rng.randint(2, 6)):
            word = rng.choice(["good", "great", "bad", "the", "film", "zzyx"])
            tag = "B-BAD" if word == "bad" else "O"
            if word in ("good", "great"):
                tag = "I-GOOD" if word == "great" and before.endswith("GOOD") else "B-GOOD"
            lines.append(f"{word} {tag}")
            before = tag
        lines.append("")
    file.write_text("\n".join(lines), encoding="utf8")
    return str(file)


def test_tags_of_words_in_windows(carry_out: Callable[..., kft.Run], tmp_path: Path) -> None:
    from seqeval.metrics import f1_score

    source, test = conll(tmp_path / "train.conll", 96, 0), conll(tmp_path / "test.conll", 16, 1)
    run = carry_out(
        **{
            "task": "token_classification",
            "model.sequence_length": 16,
            "model.config.max_sequence_length": 16,
            "data.source": source,
            "data.target": "tags",
            "data.test": test,
            "train.epochs": 6,
            "train.learning_rate": 1e-2,
        }
    )
    table = kft.load_data(source, task="token_classification", target="tags", test=test).splits.test
    assert table is not None
    sentences, tags = table.column("tokens"), table.column("tags")
    assert max(map(len, sentences)) == 40, "longer than a window"
    found = run.predict(sentences)
    assert [len(row["label"]) for row in found] == [len(sentence) for sentence in sentences]
    assert [len(row["probabilities"]) for row in found] == [len(sentence) for sentence in sentences]
    scores = run.report["metrics"]["test"]
    assert scores["entity_f1"] == pytest.approx(f1_score(tags, [row["label"] for row in found]), abs=1e-9)
    assert scores["entity_f1"] > 0.8
    assert run.predict(["the bad zzyx"])[0]["label"] == run.predict([["the", "bad", "zzyx"]])[0]["label"]


# Images

RESNET = {
    "input_conv_filters": [64],
    "input_conv_kernel_sizes": [3],
    "stackwise_num_filters": [64],
    "stackwise_num_blocks": [1],
    "stackwise_num_strides": [1],
    "block_type": "basic_block",
    "image_shape": [None, None, 3],
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder a class: stripes that lie, or stripes that stand; one in four has another size."""
    from PIL import Image

    rng = np.random.default_rng(0)
    root = tmp_path_factory.mktemp("pictures")
    for label in ("lying", "standing"):
        (root / label).mkdir()
        for number in range(32):
            size = 16 if number % 4 else 24
            picture = rng.integers(0, 90, (size, size, 3))
            stripes = np.arange(number, number + size) // 3 % 2 * 150
            picture += stripes[:, None, None] if label == "lying" else stripes[None, :, None]
            Image.fromarray(picture.astype(np.uint8)).save(root / label / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def images(carry_out: Callable[..., kft.Run], pictures: Path) -> Callable[..., kft.Run]:
    def go(**changes: Any) -> kft.Run:
        fixed = {
            "task": "image_classification",
            "model": {"pretrained": False, "architecture": "ResNetBackbone", "config": RESNET, "head_dropout": 0.0},
            "model.image_size": 16,
            "data.source": str(pictures),
            "data.test": 0.25,
            "train.batch_size": 16,
            "train.learning_rate": 3e-3,
        }
        return carry_out(**{**fixed, **changes})

    return go


@pytest.fixture(scope="module")
def plain_images(images: Callable[..., kft.Run]) -> kft.Run:
    before = "tensorflow" in sys.modules
    run = images(**{"train.epochs": 5})
    assert ("tensorflow" in sys.modules) == before, "images need no TensorFlow"
    return run


def test_images_of_several_sizes_are_learned(plain_images: kft.Run, pictures: Path) -> None:
    assert plain_images.report["metrics"]["test"]["accuracy"] >= 0.9
    assert json.loads((plain_images.folder.path / "preprocessing" / "images.json").read_text(encoding="utf8")) == {
        "size": [16, 16],
        "channels": 3,
    }
    files = [str(pictures / "lying" / "0.png"), str(pictures / "standing" / "1.png")]
    found = plain_images.predict(files)
    assert [row["label"] for row in found] == ["lying", "standing"]


def test_the_size_of_images_is_the_recipes(images: Callable[..., kft.Run]) -> None:
    run = images(**{"train.epochs": 1, "model.image_size": 12})
    assert json.loads((run.folder.path / "preprocessing" / "images.json").read_text(encoding="utf8"))["size"] == [
        12,
        12,
    ]


def test_augmentation_changes_training_and_not_prediction(
    images: Callable[..., kft.Run], plain_images: kft.Run, pictures: Path
) -> None:
    run = images(**{"train.epochs": 1, "train.augmentation": {"flip": "vertical", "translation": 0.1}})
    assert run.history[0]["loss"] != pytest.approx(plain_images.history[0]["loss"], abs=1e-6)
    assert {"RandomFlip", "RandomTranslation"} <= {type(layer).__name__ for layer in run.model.layers}
    files = [str(file) for file in sorted((pictures / "lying").iterdir())[:5]]
    assert run.predict(files) == run.predict(files)
