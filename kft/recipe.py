"""The recipe: what is to be trained, on what, how, and where it goes. Every default stands here and nowhere else."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_args

import pydantic
import yaml
from pydantic import Field

from kft.errors import RecipeError, nearest

BackendName = Literal["tensorflow", "torch", "jax"]
BACKENDS: tuple[str, ...] = get_args(BackendName)
Trainable = Annotated[str, Field(pattern=r"^(all|head|top:[1-9][0-9]*)$")]
Fraction = Annotated[float, Field(ge=0, lt=1)]


def _as_name(value: Any) -> Any:
    """YAML reads 1 and true as what they look like; labels and columns may be called so."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int) else value


Name = Annotated[str, pydantic.BeforeValidator(_as_name)]


class _Part(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Model(_Part):
    """Which pretrained model, and how much of it is trained."""

    preset: str | None = Field(
        None, description="handle of the pretrained model: preset name, hf://, pypi://, folder …"
    )
    sha256: str | None = Field(None, description="digest the fetched file must have", pattern=r"^[0-9a-f]{64}$")
    pretrained: bool = Field(True, description="false: random weights of the preset's or the given configuration")
    architecture: str | None = Field(
        None, description="KerasHub backbone class, with `config`, where there is no preset"
    )
    config: dict[str, Any] = Field({}, description="arguments of the architecture, or changes to the preset's own")
    tokenizer: str | None = Field(None, description="folder or handle of tokenizer files where the preset has none")
    part: Literal["auto", "whole", "text", "image"] = Field(
        "auto",
        description="of a model that reads images and texts: text, image or whole; auto: what the task reads, in a script the whole",
    )
    bridge: bool = Field(
        False, description="true: a TensorFlow SavedModel runs its own graph, even where kft knows its family"
    )
    sequence_length: int = Field(
        128,
        ge=8,
        description="longest input in tokens, special tokens counted; no more than the model has positions for",
    )
    stride: int | None = Field(
        None,
        ge=0,
        description="of question answering: tokens that two windows of a long context share, at most half of one; null: a third of sequence_length",
    )
    pooling: Literal["auto", "first", "pooled", "mean", "last"] = Field(
        "auto", description="which part of the text the head sees: first token, the backbone's pooler, mean, last token"
    )
    trainable: Trainable = Field("all", description="all, head, or top:N for the head and the N uppermost blocks")
    dropout: Fraction | None = Field(None, description="dropout of the backbone; null keeps the preset's")
    attention_dropout: Fraction | None = Field(
        None, description="dropout of attention's weights; null: as `dropout`; 0 is faster"
    )
    head_dropout: Fraction = Field(0.1, description="dropout before the head's last layer")
    image_size: int | None = Field(
        None, ge=1, description="height and width of images in pixels; null: the preset's own"
    )
    image_scaling: Literal["auto", "none", "0..1", "-1..1", "imagenet", "caffe"] = Field(
        "auto",
        description="how pixels become numbers; auto: as the preset says, or is known for; caffe: blue first, means taken off",
    )


class Data(_Part):
    """Where the examples are, and which columns are input and target."""

    source: str = Field(description="file, folder, tfds://, hf://datasets/ or pypi:// handle")
    sha256: str | None = Field(None, description="digest the fetched file must have", pattern=r"^[0-9a-f]{64}$")
    inputs: list[Name] | None = Field(
        None, description="columns of text (one or two) or the column of images", min_length=1
    )
    target: Name | Annotated[list[Name], Field(min_length=1)] = Field(
        "label", description="column of labels, values or answers; several 0/1 columns for multi-label"
    )
    train: str | None = Field(None, description="name of the source's training split; null: train")
    validation: float | str | None = Field(
        None, description="a fraction of train, a split's name, or a file; null: the source's own, else 0.1; 0: none"
    )
    test: float | str | None = Field(
        None, description="a fraction of train, a split's name, or a file; null: the source's own, else none; 0: none"
    )
    label_separator: str | None = Field(None, min_length=1, description="parts several labels in one cell: multi-label")
    positive_label: Name | None = Field(
        None, description="the label binary F1, precision and recall count; null: the last"
    )
    encoding: str = Field(
        "utf-8", description="encoding of text files; auto: UTF-8, and Windows-1252 for a file that is not"
    )
    limit: int | None = Field(None, ge=1, description="take at most so many training examples, drawn by the seed")

    @pydantic.field_validator("validation", "test")
    @classmethod
    def _a_fraction(cls, value: float | str | None) -> float | str | None:
        if isinstance(value, float) and not 0 <= value < 1:
            raise ValueError("a fraction has to be at least 0 and below 1")
        return value

    @pydantic.field_validator("encoding")
    @classmethod
    def _an_encoding(cls, value: str) -> str:
        try:
            codecs.lookup("utf-8" if value == "auto" else value)
        except LookupError:
            raise ValueError("not an encoding that Python knows, as utf-8 or latin-1, nor auto") from None
        return value


class EarlyStopping(_Part):
    """When to stop before the last epoch; the best weights on the metric are kept either way."""

    metric: str | None = Field(None, description="validation metric to watch; null: the task's first")
    patience: int = Field(2, ge=0, description="epochs without a better value before training stops")
    min_delta: float = Field(0.0, ge=0, description="how much better a value has to be to count")


class Augmentation(_Part):
    """Random changes to training images, by Keras' own layers."""

    flip: Literal["none", "horizontal", "vertical", "horizontal_and_vertical"] = Field("none", description="RandomFlip")
    rotation: Fraction = Field(0.0, description="RandomRotation, as a share of a full turn")
    zoom: Fraction = Field(0.0, description="RandomZoom, as a share of the size")
    translation: Fraction = Field(0.0, description="RandomTranslation, as a share of the size")
    contrast: Fraction = Field(0.0, description="RandomContrast")
    brightness: Fraction = Field(0.0, description="RandomBrightness")


class Stage(_Part):
    """One of several phases of training; what it leaves out is taken from `train` and `model`."""

    trainable: Trainable = Field("all", description="all, head, or top:N")
    epochs: int = Field(1, ge=1, description="epochs of this stage")
    learning_rate: float | None = Field(None, gt=0, description="peak learning rate of this stage; null: train's")


class Train(_Part):
    """How it is trained."""

    epochs: int = Field(3, ge=1, description="times through the training split")
    batch_size: int = Field(32, ge=1, description="examples a step")
    evaluation_batch_size: int = Field(64, ge=1, description="examples a step of evaluation and prediction")
    optimizer: Literal["adamw", "adam", "sgd", "lion", "adafactor"] = Field("adamw", description="Keras' optimizer")
    learning_rate: float = Field(5e-5, gt=0, description="peak learning rate")
    weight_decay: float = Field(0.01, ge=0, description="decoupled decay; biases and normalization are left out")
    epsilon: float = Field(1e-8, gt=0, description="Adam's epsilon")
    schedule: Literal["linear", "cosine", "constant"] = Field("linear", description="decay of the learning rate")
    warmup: float = Field(0.0, ge=0, description="share of all steps (below 1) or number of steps the rate rises over")
    clip_norm: float | None = Field(1.0, gt=0, description="bound on the gradients' global norm; null: none")
    label_smoothing: Fraction = Field(0.0, description="mass of the target spread over all classes")
    class_weights: Literal["none", "balanced"] | dict[Name, float] = Field(
        "none", description="none, balanced, or label: weight"
    )
    gradient_accumulation: int = Field(1, ge=1, description="batches whose gradients make one update")
    precision: Literal["float32", "mixed_bfloat16", "mixed_float16", "bfloat16"] = Field(
        "float32", description="dtype policy"
    )
    early_stopping: EarlyStopping | None = Field(None, description="null: train all epochs")
    best_weights: bool = Field(True, description="end with the weights of the best epoch on validation, not the last")
    metric: str | None = Field(
        None, description="validation metric that says which epoch is best; null: the task's first"
    )
    metrics: list[str] | None = Field(
        None, min_length=1, description="metrics to report; null: the task's or benchmark's own"
    )
    stages: list[Stage] | None = Field(None, min_length=1, description="several phases in turn, instead of `epochs`")
    augmentation: Augmentation = Field(Augmentation(), description="for images")
    log_every: int = Field(10, ge=1, description="steps between two lines of the history")
    checkpoint_every: int | None = Field(
        None, ge=1, description="steps between two checkpoints; null: each epoch's end"
    )


class Output(_Part):
    """Where the run folder goes."""

    directory: str | None = Field(None, description="run folder; null: runs/NAME-BACKEND-TIME")


class Recipe(_Part):
    """A fine-tuning job, whole: `kft run` needs nothing else."""

    task: str = Field(description="one of `kft list tasks`")
    backend: Literal["auto", "tensorflow", "torch", "jax"] = Field(
        "auto", description="auto: KERAS_BACKEND, or the installed one expected to finish first, as `kft plan` measures"
    )
    seed: int = Field(0, ge=0, lt=2**31, description="all random numbers, orders and splits come from it")
    model: Model
    data: Data
    train: Train = Train()
    output: Output = Output()

    @pydantic.model_validator(mode="after")
    def _fits_together(self) -> Recipe:
        model, train = self.model, self.train
        if model.preset is None and (model.pretrained or model.architecture is None):
            raise ValueError(
                "model.preset: missing. Give a handle, or model.pretrained: false with model.architecture and model.config"
            )
        if model.preset is not None and model.architecture is not None:
            raise ValueError("model.architecture: goes without model.preset, which brings its own")
        if train.stages and "epochs" in train.model_fields_set:
            raise ValueError("train.epochs: goes without train.stages, which have epochs of their own")
        if train.stages and "trainable" in model.model_fields_set:
            raise ValueError("model.trainable: goes without train.stages, which say it each")
        return self

    @property
    def stages(self) -> list[Stage]:
        """The stages of the training; a recipe without any has one."""
        return list(self.train.stages or [Stage(trainable=self.model.trainable, epochs=self.train.epochs)])

    @property
    def watched_metrics(self) -> list[str]:
        """The validation metrics that the recipe names to choose epochs by."""
        early = self.train.early_stopping
        return [name for name in (self.train.metric, early.metric if early else None) if name is not None]

    def dump(self) -> str:
        """Returns the recipe as YAML, every default written out, in the schema's order; it loads as the same recipe."""
        values = self.model_dump(mode="json")
        if self.train.stages:  # refused beside them
            del values["train"]["epochs"], values["model"]["trainable"]
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)

    def changed(self, changes: Mapping[str, Any]) -> Recipe:
        """Returns the recipe with some fields, named as `train.epochs`, set to other values and checked again."""
        values = self.model_dump(mode="json", exclude_unset=True)
        for name, value in changes.items():
            _put(values, name, value, "")
        return validate(values, "recipe")


def load(path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Reads a recipe from a YAML or JSON file and applies overrides.

    Local paths in the file count from the file's folder, those in overrides from the working directory.

    Args:
        path: the file.
        overrides: `key=value` strings, as in `train.epochs=1`; values are read as YAML.

    Raises:
        RecipeError: if the file cannot be read, or a field is unknown or of the wrong type.
    """
    file = Path(path)
    values = _read(file)
    origin = str(path)
    _anchor(values, file.parent)
    for override in overrides:
        _override(values, override)
    return validate(values, origin)


def validate(values: Mapping[str, Any], origin: str) -> Recipe:
    """Returns the recipe that a mapping describes.

    Raises:
        RecipeError: naming the first field at fault, what was received and what is allowed.
    """
    try:
        return Recipe.model_validate(values)
    except pydantic.ValidationError as error:
        raise RecipeError(f"{origin}: {_explain(error.errors()[0])}") from None


def schema() -> dict[str, Any]:
    """Returns the JSON schema of a recipe."""
    return Recipe.model_json_schema()


def fields(model: type[pydantic.BaseModel] = Recipe, prefix: str = "") -> dict[str, Any]:
    """Returns every field of the schema by its dotted name."""
    found: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        found[prefix + name] = field
        for inner in (field.annotation, *get_args(field.annotation)):
            if isinstance(inner, type) and issubclass(inner, pydantic.BaseModel):
                found.update(fields(inner, f"{prefix}{name}."))
    return found


def _read(file: Path) -> dict[str, Any]:
    try:
        text = file.read_text(encoding="utf8")
    except FileNotFoundError:
        raise RecipeError(f"No recipe at '{file}'. Type `kft init text_classification` to make one.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"Cannot read the recipe '{file}': {error}.") from None
    try:
        values = json.loads(text) if file.suffix == ".json" else yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        raise RecipeError(f"{file}: not valid {'JSON' if file.suffix == '.json' else 'YAML'}: {error}.") from None
    if not isinstance(values, dict):
        raise RecipeError(f"{file}: a recipe is a mapping of fields, received {type(values).__name__}.")
    return cast("dict[str, Any]", values)


PATH_FIELDS = ("model.preset", "model.tokenizer", "data.source", "data.train", "data.validation", "data.test")
_PATHS_ALWAYS = ("model.tokenizer", "data.source")  # the others may be names, unless there is such a file


def _anchor(values: dict[str, Any], folder: Path) -> None:
    """Makes local paths absolute, counted from the recipe's folder, so that the recipe means the same from anywhere."""
    for name in PATH_FIELDS:
        part, _, field = name.partition(".")
        section = values.get(part)
        value = section.get(field) if isinstance(section, dict) else None
        if not isinstance(value, str) or "://" in value or not value:
            continue
        place = folder / Path(value).expanduser()
        if name in _PATHS_ALWAYS or (place.exists() and _may_be_path(name, value)):
            section[field] = str(place.resolve())  # type: ignore[index]


def _may_be_path(name: str, value: Any) -> bool:
    """Says whether a value may be a local path; a bare word is the name of a split, whatever lies beside the recipe."""
    if not isinstance(value, str) or "://" in value:
        return False
    return (
        not name.startswith("data.") or name == "data.source" or len(Path(value).parts) > 1 or bool(Path(value).suffix)
    )


def _override(values: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    if not equals:
        raise RecipeError(f"'{override}' is not an override. Type it as KEY=VALUE, as in train.epochs=1.")
    value = _typed(name, text)
    if name in PATH_FIELDS and _may_be_path(name, value) and Path(value).exists():
        value = str(Path(value).resolve())
    _put(values, name, value, f"override '{override}': ")


def _typed(name: str, text: str) -> Any:
    """Reads a value as YAML; where the field takes text, only lists, quotes, numbers it allows and null are not text."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value):
        value = float(value)  # YAML 1.1 takes 5e-5, without a point, for a string
    field = fields().get(name)
    kinds = {field.annotation, *get_args(field.annotation)} if field else set()
    read = isinstance(value, list) or text[:1] in ("'", '"') or text in ("", "~", "null")
    if not kinds & {str, Name} or read or (float in kinds and isinstance(value, int | float)):
        return value
    return text


def _put(values: dict[str, Any], name: str, value: Any, origin: str) -> None:
    known = fields()
    if name not in known and not name.startswith(("model.config.", "train.class_weights.")):
        raise RecipeError(f"{origin}Unknown field '{name}'.{nearest(name, known)}")
    *parents, last = name.split(".")
    section = values
    for parent in parents:
        inner = section.get(parent)
        section[parent] = dict(inner) if isinstance(inner, dict) else {}
        section = section[parent]
    section[last] = value


def _explain(error: Any) -> str:
    kinds = ("function-", "literal[", "constrained", "list[", "dict[")
    parts = [str(part) for part in error["loc"]]
    place = ".".join(part for part in parts if part not in ("str", "float") and not part.startswith(kinds))
    if error["type"] == "extra_forbidden":
        return f"Unknown field '{place}'.{_nearest_field(place)}"
    if error["type"] == "missing":
        return f"Field '{place}' is missing. It is: {_describe(place)}."
    message: str = error["msg"].removeprefix("Value error, ")
    if not place:
        return message + "."
    described = _describe(place)
    received = json.dumps(error["input"], default=str)
    return f"Field '{place}': received {received}; {message[0].lower() + message[1:]}{described and f' ({described})'}."


def _nearest_field(place: str) -> str:
    parent, _, last = place.rpartition(".")
    known = {**fields(), **fields(Stage, "train.stages.")}
    section = re.sub(r"\.\d+", "", parent)
    names = [name.rpartition(".")[2] for name in known if name.rpartition(".")[0] == section]
    close = [f"{parent}.{name}" if parent else name for name in names]
    return nearest(place, close) or nearest(last, names) or f" Allowed: {', '.join(names)}."


def _describe(place: str) -> str:
    known = fields()
    while place and place not in known:
        place = place.rpartition(".")[0]
    return (known[place].description or "") if place else ""
