"""A model card: what a run was, in words and in the Hub's metadata."""

from __future__ import annotations

from typing import Any

import yaml

from kft import __version__
from kft.exporters.exported import Finished

PIPELINES = {
    "text_classification": "text-classification",
    "text_regression": "text-classification",
    "token_classification": "token-classification",
    "question_answering": "question-answering",
}


def text(run: Finished, architecture: str) -> str:
    """Returns the card as Markdown with a head of YAML.

    Args:
        run: what is handed on.
        architecture: the class of transformers that opens the folder.
    """
    head = yaml.safe_dump(_metadata(run), sort_keys=False, allow_unicode=True)
    parts = [f"---\n{head}---", f"# {run.task.replace('_', ' ').capitalize()}", _summary(run, architecture)]
    if scores := run.report.get("metrics"):
        parts.append("## Metrics\n\n" + _table(scores))
    if run.target.labels:
        parts.append("## Labels\n\n" + "\n".join(f"{n}. {label}" for n, label in enumerate(run.target.labels)))
    recipe = run.recipe.strip().replace(run.encoding.data.source, _data(run))
    parts.append(f"## Recipe\n\n```yaml\n{recipe}\n```")
    return "\n\n".join(parts) + "\n"


def _metadata(run: Finished) -> dict[str, Any]:
    found: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": PIPELINES[run.task],
        "tags": ["keras", "kft", f"backend:{run.report.get('backend', 'unknown')}"],
    }
    preset = run.preset or ""
    if preset.startswith("hf://"):
        found["base_model"] = preset.removeprefix("hf://").partition("@")[0]
    scores = run.report.get("metrics", {})
    split = next((name for name in ("test", "validation") if name in scores), None)
    if split is not None:
        values = [
            {"type": name, "value": round(value, 6), "name": f"{split} {name}"}
            for name, value in scores[split].items()
            if name != "loss"
        ]
        data = {"name": _data(run), "type": "custom", "split": split}
        result = {"task": {"type": PIPELINES[run.task]}, "dataset": data, "metrics": values}
        found["metrics"] = [value["type"] for value in values]
        found["model-index"] = [{"name": run.task, "results": [result]}]
    return found


def _data(run: Finished) -> str:
    """Returns the handle of the data; of a folder its name alone, since a card is for others."""
    source = run.encoding.data.source
    return source if "://" in source else source.rstrip("/").rpartition("/")[2]


def _summary(run: Finished, architecture: str) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in run.report.get("versions", {}).items())
    lines = [
        f"Fine-tuned with [Keras](https://keras.io) and kft {__version__} from `{run.preset or 'random weights'}`; "
        f"transformers opens it as `{architecture}`."
    ]
    if "examples" in run.report:
        counts = ", ".join(f"{count} {split}" for split, count in run.report["examples"].items())
        lines.append(f"Data: `{_data(run)}` ({counts} examples). Seed {run.report.get('seed')}.")
    if versions:
        lines.append(f"Versions: {versions}.")
    return "\n\n".join(lines)


def _table(scores: dict[str, dict[str, float]]) -> str:
    names = list(next(iter(scores.values())))
    lines = [["split", *names], ["---"] * (1 + len(names))]
    lines += [[split, *(f"{found[name]:.4f}" for name in names)] for split, found in scores.items()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
