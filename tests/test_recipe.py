from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from kft import recipe as recipes
from kft.errors import RecipeError
from kft.recipe import Recipe

PLAIN: dict[str, Any] = {
    "task": "text_classification",
    "model": {"preset": "bert_tiny_en_uncased"},
    "data": {"source": "reviews.csv"},
}
RANDOM = {"pretrained": False, "architecture": "BertBackbone", "config": {"num_layers": 2}}


def with_changes(**sections: Any) -> dict[str, Any]:
    both = {name: {**PLAIN.get(name, {}), **section} for name, section in sections.items() if isinstance(section, dict)}
    return {**PLAIN, **sections, **both}


def write(folder: Path, values: Any, name: str = "recipe.yaml") -> Path:
    file = folder / name
    file.write_text(values if isinstance(values, str) else yaml.safe_dump(values), encoding="utf8")
    return file


def said(call: Any, *arguments: Any) -> str:
    """The message of the RecipeError that a call raises; it is one line with an end."""
    with pytest.raises(RecipeError) as caught:
        call(*arguments)
    message = str(caught.value)
    assert "\n" not in message and message[-1] in ".?", message
    assert caught.value.exit_code == 2
    return message


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path, PLAIN)


@pytest.mark.parametrize(
    ("values", "place", "hint"),
    [
        (with_changes(train={"epoch": 3}), "train.epoch", "Did you mean 'train.epochs'?"),
        (with_changes(model={"sequence_lenght": 64}), "model.sequence_lenght", "Did you mean 'model.sequence_length'?"),
        (with_changes(dta={"source": "x"}), "dta", "Did you mean 'data'?"),
        (
            with_changes(train={"early_stopping": {"patiense": 2}}),
            "train.early_stopping.patiense",
            "Did you mean 'train.early_stopping.patience'?",
        ),
        (
            with_changes(train={"stages": [{}, {"learning_rat": 1e-3}]}),
            "train.stages.1.learning_rat",
            "Did you mean 'train.stages.1.learning_rate'?",
        ),
        (with_changes(qqq=1), "qqq", "Allowed: task, backend, seed, model, data, train, output."),
    ],
)
def test_an_unknown_field_is_refused_with_the_nearest_name(values: dict, place: str, hint: str) -> None:
    message = said(recipes.validate, values, "recipe.yaml")
    assert message == f"recipe.yaml: Unknown field '{place}'. {hint}"


@pytest.mark.parametrize(
    ("values", "place", "received"),
    [
        (with_changes(train={"epochs": "three"}), "train.epochs", '"three"'),
        (with_changes(train={"epochs": 0}), "train.epochs", "0"),
        (with_changes(train={"epochs": 1.5}), "train.epochs", "1.5"),
        (with_changes(train={"learning_rate": float("nan")}), "train.learning_rate", "NaN"),
        (with_changes(train={"optimizer": "adamx"}), "train.optimizer", '"adamx"'),
        (with_changes(train=5), "train", "5"),
        (with_changes(train={"class_weights": 5}), "train.class_weights", "5"),
        (with_changes(train={"stages": [{"epochs": "x"}]}), "train.stages.0.epochs", '"x"'),
        (with_changes(model={"trainable": "top"}), "model.trainable", '"top"'),
        (with_changes(model={"sha256": "abc"}), "model.sha256", '"abc"'),
        (with_changes(data={"inputs": "text"}), "data.inputs", '"text"'),
        (with_changes(data={"inputs": []}), "data.inputs", "[]"),
        (with_changes(data={"target": []}), "data.target", "[]"),
        (with_changes(data={"validation": [1]}), "data.validation", "[1]"),
        (with_changes(data={"validation": 1}), "data.validation", "1"),
        (with_changes(data={"encoding": "utf9"}), "data.encoding", '"utf9"'),
        (with_changes(backend="cuda"), "backend", '"cuda"'),
        (with_changes(seed=-1), "seed", "-1"),
    ],
)
def test_a_wrong_value_is_refused_with_field_value_and_what_is_allowed(values: dict, place: str, received: str) -> None:
    message = said(recipes.validate, values, "recipe.yaml")
    assert message.startswith(f"recipe.yaml: Field '{place}': received {received}; ")
    assert len(message) > len(f"recipe.yaml: Field '{place}': received {received}; ") + 10


@pytest.mark.parametrize("name", ["task", "model", "data"])
def test_a_missing_field_says_what_it_is(name: str) -> None:
    values = {key: value for key, value in PLAIN.items() if key != name}
    assert said(recipes.validate, values, "r").startswith(f"r: Field '{name}' is missing.")
    assert "one of `kft list tasks`" in said(recipes.validate, {"model": {}, "data": {}}, "r")


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("train.learning_rate=5e-5", 5e-5),
        ("train.learning_rate=1E-3", 1e-3),
        ("train.learning_rate=0.5", 0.5),
        ("train.epochs=7", 7),
        ("train.best_weights=false", False),
        ("train.clip_norm=null", None),
        ("train.metrics=[f1, accuracy]", ["f1", "accuracy"]),
        ("train.early_stopping.patience=5", 5),
        ("train.class_weights.1=2", {"1": 2.0}),
        ("train.class_weights=balanced", "balanced"),
        ("train.stages=[{trainable: head}, {trainable: all}]", ["head", "all"]),
        ("model.config.num_layers=3", {"num_layers": 3}),
        ("data.validation=0.25", 0.25),
        ("data.validation=1e-1", 0.1),
        ("data.validation=heldout", "heldout"),
        ("data.validation=null", None),
        ("data.target=[a, b]", ["a", "b"]),
        ("data.target='a b'", "a b"),
        ("data.target=no", "no"),
        ("data.target=0", "0"),
        ("data.positive_label=1", "1"),
        ("data.positive_label=null", None),
        ("data.label_separator=|", "|"),
        ("data.label_separator=#", "#"),
        ("data.label_separator=,", ","),
        ("data.sha256=" + 64 * "1", 64 * "1"),
        ("output.directory=2024", "2024"),
        ("seed=11", 11),
    ],
)
def test_an_override_is_typed_by_its_field(file: Path, override: str, value: Any) -> None:
    found: Any = recipes.load(file, [override])
    for part in override.partition("=")[0].split("."):
        found = getattr(found, part) if not isinstance(found, dict) else found
    if isinstance(found, list) and not isinstance(found[0], str):
        found = [stage.trainable for stage in found]
    assert found == value and type(found) is type(value)


def test_labels_and_columns_may_be_called_by_numbers(tmp_path: Path) -> None:
    text = "task: t\nmodel: {preset: x}\ndata: {source: y, inputs: [0], target: 1, positive_label: 1}\n"
    recipe = recipes.load(write(tmp_path, text + "train: {class_weights: {0: 1, 1: 2.5}}\n"))
    assert (recipe.data.inputs, recipe.data.target, recipe.data.positive_label) == (["0"], "1", "1")
    assert recipe.train.class_weights == {"0": 1.0, "1": 2.5}


def test_the_last_of_two_overrides_counts_and_the_rest_of_the_section_stays(tmp_path: Path) -> None:
    file = write(tmp_path, with_changes(train={"epochs": 9, "batch_size": 4}))
    train = recipes.load(file, ["train.epochs=1", "train.epochs=2"]).train
    assert (train.epochs, train.batch_size) == (2, 4)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("train.epochs", "is not an override. Type it as KEY=VALUE"),
        ("train.epoch=1", "Unknown field 'train.epoch'. Did you mean 'train.epochs'?"),
        ("train.epochs.foo=1", "Unknown field 'train.epochs.foo'."),
        ("train.epochs=many", "Field 'train.epochs': received \"many\""),
    ],
)
def test_a_wrong_override_is_refused(file: Path, override: str, says: str) -> None:
    assert says in said(recipes.load, file, [override])


def test_paths_count_from_the_file_and_those_of_overrides_from_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside, here = tmp_path / "beside", tmp_path / "here"
    for folder in (beside, here):
        (folder / "tok").mkdir(parents=True)
        (folder / "reviews.csv").write_text("text,label\n")
        (folder / "dev.csv").write_text("text,label\n")
    file = write(beside, with_changes(data={"validation": "dev.csv"}, model={"tokenizer": "tok"}))
    monkeypatch.chdir(here)
    recipe = recipes.load(Path("..") / "beside" / file.name)
    assert Path(recipe.data.source) == beside / "reviews.csv"
    assert Path(str(recipe.data.validation)) == beside / "dev.csv"
    assert Path(str(recipe.model.tokenizer)) == beside / "tok"
    assert recipe.model.preset == "bert_tiny_en_uncased"  # a name, as no such folder is there

    changed = recipes.load(file, ["data.source=reviews.csv", "model.tokenizer=tok", "data.test=dev.csv"])
    assert Path(changed.data.source) == here / "reviews.csv"
    assert Path(str(changed.model.tokenizer)) == here / "tok"
    assert Path(str(changed.data.test)) == here / "dev.csv"
    assert Path(str(changed.data.validation)) == beside / "dev.csv"


def test_a_file_of_the_working_directory_does_not_stand_in_for_one_missing_beside_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "reviews.csv").write_text("text,label\n")
    file = write(tmp_path / "recipes", PLAIN)
    monkeypatch.chdir(tmp_path)
    assert Path(recipes.load(file).data.source) == tmp_path / "recipes" / "reviews.csv"


def test_handles_are_left_as_they_are(tmp_path: Path) -> None:
    handles = {"source": "tfds://glue/mrpc", "validation": "hf://datasets/a/b"}
    recipe = recipes.load(write(tmp_path, with_changes(data=handles, model={"preset": "hf://a/b"})))
    assert (recipe.data.source, recipe.data.validation, recipe.model.preset) == (*handles.values(), "hf://a/b")


@pytest.mark.parametrize(
    "values",
    [
        PLAIN,
        {**PLAIN, "model": RANDOM},
        with_changes(data={"target": ["a", "b"], "test": 0.2, "validation": "dev", "positive_label": "007"}),
        with_changes(data={"inputs": ["Überschrift", "no"], "label_separator": "|"}),
        with_changes(train={"class_weights": {"1": 0.5, "ja": 2}, "early_stopping": {}, "learning_rate": 1e-7}),
        with_changes(train={"stages": [{"trainable": "head"}, {"epochs": 2, "learning_rate": 1e-5}]}),
    ],
)
def test_a_dumped_recipe_loads_as_the_same_recipe(tmp_path: Path, values: dict) -> None:
    recipe = recipes.validate(values, "recipe")
    loaded = recipes.load(write(tmp_path, recipe.dump()), [f"data.source={recipe.data.source}"])
    assert loaded == recipe


def test_a_dumped_recipe_has_every_default(tmp_path: Path) -> None:
    dumped = yaml.safe_load(recipes.validate(PLAIN, "recipe").dump())
    assert dumped["train"]["batch_size"] == 32 and dumped["output"] == {"directory": None}
    assert set(dumped["model"]) == set(recipes.Model.model_fields)


def test_changed_checks_again(tmp_path: Path) -> None:
    recipe = recipes.validate(PLAIN, "recipe")
    assert recipe.changed({"train.epochs": 9, "backend": "jax"}).train.epochs == 9
    assert recipe.train.epochs == 3
    assert "'train.epochs'" in said(recipe.changed, {"train.epochs": "x"})
    assert "Did you mean 'train.epochs'?" in said(recipe.changed, {"train.epoch": 1})


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (with_changes(train={"stages": [{}], "epochs": 2}), "train.epochs: goes without train.stages"),
        (
            with_changes(train={"stages": [{}]}, model={"trainable": "head"}),
            "model.trainable: goes without train.stages",
        ),
        (with_changes(model=RANDOM), "model.architecture: goes without model.preset"),
        ({**PLAIN, "model": {}}, "model.preset: missing. Give a handle, or model.pretrained: false"),
        ({**PLAIN, "model": {"pretrained": False}}, "model.preset: missing."),
        ({**PLAIN, "model": {"architecture": "BertBackbone"}}, "model.preset: missing."),
    ],
)
def test_fields_that_contradict_one_another_are_refused(values: dict, says: str) -> None:
    assert said(recipes.validate, values, "recipe.yaml").startswith(f"recipe.yaml: {says}")


def test_stages_stand_for_epochs_and_trainable() -> None:
    one = recipes.validate(with_changes(model={"trainable": "top:2"}, train={"epochs": 4}), "r").stages
    assert [(stage.trainable, stage.epochs, stage.learning_rate) for stage in one] == [("top:2", 4, None)]
    two = recipes.validate(with_changes(train={"stages": [{"trainable": "head"}, {"epochs": 2}]}), "r").stages
    assert [(stage.trainable, stage.epochs) for stage in two] == [("head", 1), ("all", 2)]


def test_a_recipe_may_be_json(tmp_path: Path) -> None:
    file = write(tmp_path, json.dumps(with_changes(train={"learning_rate": 5e-5})), "recipe.json")
    same = write(tmp_path, with_changes(train={"learning_rate": 5e-5}))
    assert recipes.load(file) == recipes.load(same)
    assert "not valid JSON" in said(recipes.load, write(tmp_path, '{"task": 1,}', "broken.json"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("- task\n- model\n", "a recipe is a mapping of fields, received list."),
        ("", "a recipe is a mapping of fields, received NoneType."),
        ("just words", "a recipe is a mapping of fields, received str."),
        ("task: [a\nmodel: b\n", "not valid YAML"),
        ("task: a\n\tmodel: b\n", "not valid YAML"),
        ("task: !!python/object/apply:os.getcwd []\n", "not valid YAML"),
    ],
)
def test_what_is_no_recipe_is_refused(tmp_path: Path, text: str, says: str) -> None:
    file = write(tmp_path, text)
    message = said(recipes.load, file)
    assert message.startswith(f"{file}: ") and says in message


def test_a_recipe_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    assert f"No recipe at '{tmp_path / 'no.yaml'}'. Type `kft init" in said(recipes.load, tmp_path / "no.yaml")
    assert f"Cannot read the recipe '{tmp_path}'" in said(recipes.load, tmp_path)
    (tmp_path / "latin.yaml").write_bytes("task: Übung\n".encode("latin-1"))
    assert "Cannot read the recipe" in said(recipes.load, tmp_path / "latin.yaml")


def _fields_of_the_schema(part: dict[str, Any], schema: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, dict]]:
    for name, field in part.get("properties", {}).items():
        yield prefix + name, field
        for option in [field, *field.get("anyOf", [])]:
            if "$ref" in option:
                inner = schema["$defs"][option["$ref"].rpartition("/")[2]]
                yield from _fields_of_the_schema(inner, schema, f"{prefix}{name}.")


def test_the_schema_has_every_field_with_its_explanation() -> None:
    schema = recipes.schema()
    found = dict(_fields_of_the_schema(schema, schema))
    assert set(found) == set(recipes.fields()) and len(found) > 40
    leaves = [name for name in found if not any(other.startswith(f"{name}.") for other in found)]
    assert [name for name in leaves if not recipes.fields()[name].description] == []


def test_a_recipe_cannot_be_changed_in_place() -> None:
    recipe = Recipe.model_validate(PLAIN)
    with pytest.raises(ValueError, match="frozen"):
        recipe.train.epochs = 5  # type: ignore[misc]
