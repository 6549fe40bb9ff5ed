"""Writes a recipe to edit from the schema: names, defaults and explanations are the schema's."""

from __future__ import annotations

import itertools
import types
from collections.abc import Iterator, Mapping
from typing import Any, Literal, Union, get_args, get_origin

import pydantic
import yaml
from pydantic.fields import FieldInfo

from kft.recipe import Recipe, fields
from kft.tasks import TASKS

TEXT = {"model.preset": "bert_small_en_uncased", "data.source": "data.csv", "data.inputs": ["text"]}
SAMPLES: dict[str, dict[str, Any]] = {
    "text_classification": {**TEXT, "data.target": "label"},
    "text_regression": {**TEXT, "data.target": "score"},
    "token_classification": {
        **TEXT,
        "data.source": "data.conll",
        "data.inputs": ["tokens"],
        "data.target": "tags",
    },
    "question_answering": {
        **TEXT,
        "model.sequence_length": 384,
        "data.source": "train.json",
        "data.inputs": ["question", "context"],
        "data.target": "answers",
    },
    "image_classification": {"model.preset": "resnet_18_imagenet", "data.source": "images", "data.target": "label"},
}
SHOWN = ("train.epochs", "train.batch_size", "train.learning_rate")


def recipe_text(task: str, file: str) -> str:
    """Returns a commented recipe for a task, as YAML; what is left at its default is commented out.

    Args:
        task: its name.
        file: the name the recipe will have, for the command at its head.

    Raises:
        KftError: if there is no such task.
    """
    summary = TASKS[task].summary
    known = fields()
    values = {"task": task, **SAMPLES.get(task, TEXT), **{name: known[name].default for name in SHOWN}}
    head = [f"# {task}: {summary}.", f"# Set data.source and model.preset, then type: kft run {file}"]
    return "\n".join([*head, *_lines(Recipe, "", values)]) + "\n"


def _lines(model: type[pydantic.BaseModel], prefix: str, values: Mapping[str, Any]) -> Iterator[str]:
    for name, field in model.model_fields.items():
        section = _section(field)
        if section is not None:
            yield from _section_lines(name, field, section, prefix, values)
        elif prefix + name in values:
            yield f"{name}: {_yaml(values[prefix + name])}  # {_meaning(field)}"
        else:
            yield f"# {name}: {_yaml(field.get_default(call_default_factory=True))}  # {_meaning(field)}"


def _section_lines(
    name: str, field: FieldInfo, section: type[pydantic.BaseModel], prefix: str, values: Mapping[str, Any]
) -> Iterator[str]:
    lines = list(_lines(section, f"{prefix}{name}.", values))
    head = f"{name}:  # {_meaning(field) or _first_line(section)}"
    if any(not line.startswith("#") for line in lines):
        yield head
        yield from (f"  {line}" for line in lines)
        return
    yield f"# {head}"
    indents = itertools.chain(["  - "], itertools.repeat("    ")) if _is_list(field) else itertools.repeat("  ")
    yield from (f"# {indent}{line.removeprefix('# ')}" for indent, line in zip(indents, lines, strict=False))


def _section(field: FieldInfo) -> type[pydantic.BaseModel] | None:
    """Returns the schema of a field that has fields of its own, or is a list of such."""
    for inner in _inner(field.annotation):
        if isinstance(inner, type) and issubclass(inner, pydantic.BaseModel):
            return inner
    return None


def _is_list(field: FieldInfo) -> bool:
    return any(get_origin(part) is list for part in (field.annotation, *get_args(field.annotation)))


def _inner(annotation: Any) -> Iterator[Any]:
    """Yields an annotation and all it is made of; the values of a Literal are not among them."""
    yield annotation
    if get_origin(annotation) in (Union, types.UnionType, list):
        for part in get_args(annotation):
            yield from _inner(part)


def _meaning(field: FieldInfo) -> str:
    choices = [
        str(value) for part in _inner(field.annotation) if get_origin(part) is Literal for value in get_args(part)
    ]
    described = field.description or ""
    absent = [choice for choice in choices if choice not in described]
    return f"{described} ({', '.join(choices)})" if absent else described


def _first_line(section: type[pydantic.BaseModel]) -> str:
    return (section.__doc__ or "").strip().splitlines()[0]


def _yaml(value: Any) -> str:
    if isinstance(value, str) and value and value.replace("_", "").isalnum() and not value[0].isdigit():
        return value
    return yaml.safe_dump([value], default_flow_style=True, width=10_000, allow_unicode=True).strip()[1:-1]
