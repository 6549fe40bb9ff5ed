"""Encoders of TF-Hub's as Keras models: the numbers and the token ids are those of TensorFlow's own SavedModels."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kft
from kft.backbones import folders, saved_model
from kft.errors import ModelError

pytestmark = pytest.mark.backend
HARD = [
    "Good BAD quite",
    "Ünïcödé naïve café",
    "日本語 のテキスト",
    "emoji 😀 and \u200b zero width",
    "tab\tnew\nline \x07 bell",
    "a" * 130,
    "don't , stop . now!",
    "",
]


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache of this module's own; TensorFlow takes seconds to read a SavedModel into it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KFT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def states(folder: Path, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    import keras

    model = kft.load_backbone(str(folder)).model
    found = model({name: inputs[name] for name in model.input}, training=False)
    return {name: keras.ops.convert_to_numpy(value) for name, value in found.items()}


@pytest.mark.parametrize("family", ["bert", "albert", "electra"])
def test_an_encoder_gives_what_its_graph_gives(
    family: str, request: pytest.FixtureRequest, theirs: Callable[[Path], Any], same: Callable[..., None]
) -> None:
    folder = request.getfixturevalue(f"hub_{family}")
    rng = np.random.default_rng(0)
    mask = (np.arange(11) < np.array([[11], [4], [7]])).astype(np.int32)
    ids, segments = rng.integers(0, 60, (3, 11)).astype(np.int32), rng.integers(0, 2, (3, 11)).astype(np.int32)
    mine = states(folder, {"token_ids": ids, "padding_mask": mask, "segment_ids": segments})
    given = {"input_word_ids": ids, "input_mask": mask, "input_type_ids": segments}
    other = theirs(folder)(given, False)
    # Nobody trained ELECTRA's pooler.
    assert ("pooled_output" in mine) == (family != "electra")
    for name in mine:
        real = mask.astype(bool) if name == "sequence_output" else slice(None)
        same("TF-Hub, native", family, mine[name][real], other[name].numpy()[real], atol=1e-5)


@pytest.mark.usefixtures("once")
def test_nothing_of_a_known_family_is_run(hub_bert: Path, tmp_path: Path) -> None:
    """Its operations may be unknown to TensorFlow: only names and weights are read."""
    copy = tmp_path / "renamed"
    shutil.copytree(hub_bert, copy)
    graph = (copy / "saved_model.pb").read_bytes()
    (copy / "saved_model.pb").write_bytes(
        graph.replace(b"BatchMatMulV2", b"BatchMatMulV9").replace(b"Einsum", b"Eznsum")
    )
    assert folders.open_folder(copy, "handle").format == "hugging_face"


@pytest.mark.usefixtures("once")
def test_the_second_time_nothing_is_converted(hub_bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = folders.locate(str(hub_bert))
    monkeypatch.setattr(saved_model, "_convert", None)
    assert folders.locate(str(hub_bert)) == first


@pytest.mark.usefixtures("once")
def test_the_vocabulary_comes_along(hub_bert: Path) -> None:
    found = folders.locate(str(hub_bert)).path
    assert json.loads((found / "tokenizer_config.json").read_text(encoding="utf8"))["do_lower_case"] is True
    assert (found / "vocab.txt").read_bytes() == (hub_bert / "assets" / "vocab.txt").read_bytes()


EXPORT = """
import sys
import tensorflow as tf
import tensorflow_text as text

class Preprocessor(tf.Module):
    def __init__(self, vocabulary, lower):
        super().__init__()
        self.file = tf.saved_model.Asset(vocabulary)
        table = tf.lookup.StaticVocabularyTable(
            tf.lookup.TextFileInitializer(
                self.file, tf.string, tf.lookup.TextFileIndex.WHOLE_LINE, tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER
            ),
            num_oov_buckets=1,
        )
        self.tokenizer = text.BertTokenizer(table, lower_case=lower, token_out_type=tf.int32)
        self.table = table

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
    def __call__(self, texts):
        found = self.tokenizer.tokenize(texts).merge_dims(1, 2)
        return found.to_tensor(default_value=-1)

import json
lines, found = json.load(sys.stdin), {}
for case in ("lower", "cased"):
    made = Preprocessor(sys.argv[1], case == "lower")
    tf.saved_model.save(made, sys.argv[2] + case)
    found[case] = [[i for i in row if i >= 0] for row in made(tf.constant(lines)).numpy().tolist()]
json.dump(found, sys.stdout)
"""


@pytest.mark.usefixtures("once")
def test_a_preprocessor_gives_the_same_ids(vocabulary: Path, tmp_path: Path) -> None:
    """TensorFlow Text's tokenizer, saved as TF-Hub's preprocessors are, against kft's from its assets."""
    pytest.importorskip("tensorflow_text", reason="TensorFlow Text makes the preprocessor to compare with")
    words = tmp_path / "vocab.txt"
    lines = (vocabulary / "vocab.txt").read_text(encoding="utf8").splitlines()
    words.write_text("\n".join([*lines, "Good", "é", "##é", "##ï", "日", "本", "!", "'"]) + "\n", encoding="utf8")
    folder = tmp_path / "preprocessor"
    done = subprocess.run(
        [sys.executable, "-c", EXPORT, str(words), str(folder)],
        input=json.dumps(HARD),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    from kft.backbones import tokenizer_files

    unknown = lines.index("[UNK]")
    for case, ids in json.loads(done.stdout).items():
        mine = tokenizer_files.load(Path(f"{folder}{case}")).engine.encode(HARD)
        # TensorFlow Text numbers what it does not know after the vocabulary.
        assert mine == [[i if i < len(lines) + 8 else unknown for i in row] for row in ids], case
        assert len({tuple(row) for row in mine}) > 5


@pytest.mark.usefixtures("once")
def test_a_broken_saved_model_is_refused(backend: str, hub_bert: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(hub_bert, copy)
    (copy / "variables" / "variables.index").unlink()
    with pytest.raises(ModelError, match=r"lacks variables/variables.index"):
        folders.locate(str(copy))
    shutil.copytree(hub_bert, copy, dirs_exist_ok=True)
    data = next((copy / "variables").glob("*.data-*"))
    data.write_bytes(data.read_bytes()[:1000])
    with pytest.raises(ModelError, match="TensorFlow cannot read the SavedModel"):
        folders.locate(str(copy))
