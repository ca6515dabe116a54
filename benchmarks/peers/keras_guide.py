"""The Keras guide "Transfer learning & fine-tuning" on MobileNetV2 with torchvision's ImageNet weights, converted.

    python keras_guide.py TREE WEIGHTS OUT.json [EPOCHS_FROZEN] [EPOCHS_TUNED]

The guide's blueprint, at 161 × 161 pixels instead of 150 × 150, because Keras pads odd sizes as torchvision does, whose weights
these are (at even sizes the features correlate by 0.6 to 0.8 only): batches of 64, mirrored and turned, the base frozen and in
inference mode under dropout and a dense layer for 20 epochs of Adam; then everything for 10 epochs at 1e-5. (Its worked example
shows 2 and 1 epochs.) A tenth of train/ is its validation set, as in the guide.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import outcome

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
SIDE, BATCH = 161, 64
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BLOCKS = (1, 2, 3, 4, 3, 3, 1)  # per stage of MobileNetV2


def names() -> list[tuple[str, str, str, str]]:
    """(convolution, its norm) of Keras and (convolution, its norm) of timm, in order."""
    found = [("Conv1", "bn_Conv1", "conv_stem", "bn1")]
    places = [f"blocks.{stage}.{index}" for stage, blocks in enumerate(BLOCKS) for index in range(blocks)]
    for number, timm in enumerate(places):
        keras = f"block_{number}" if number else "expanded_conv"
        steps = ["expand", "depthwise", "project"] if number else ["depthwise", "project"]
        leaves = ["conv_pw", "conv_dw", "conv_pwl"] if number else ["conv_dw", "conv_pw"]
        for norm, (step, leaf) in enumerate(zip(steps, leaves, strict=True), start=1):
            found.append((f"{keras}_{step}", f"{keras}_{step}_BN", f"{timm}.{leaf}", f"{timm}.bn{norm}"))
    return [*found, ("Conv_1", "Conv_1_bn", "conv_head", "bn2")]


def converted(base: Any, weights: Path) -> None:
    """Put timm's weights into the Keras network: the same convolutions, and norms that allow for another epsilon."""
    import numpy as np
    from safetensors.numpy import load_file

    state = load_file(weights)
    for conv, norm, timm_conv, timm_norm in names():
        kernel = state[f"{timm_conv}.weight"]
        base.get_layer(conv).set_weights([kernel.transpose((2, 3, 0, 1) if "depthwise" in conv else (2, 3, 1, 0))])
        variance, layer = state[f"{timm_norm}.running_var"], base.get_layer(norm)
        gamma = state[f"{timm_norm}.weight"] * np.sqrt((variance + layer.epsilon) / (variance + 1e-5))
        layer.set_weights([gamma, state[f"{timm_norm}.bias"], state[f"{timm_norm}.running_mean"], variance])


def main(tree: Path, weights: Path, out: Path, frozen: int = 20, tuned: int = 10) -> None:
    """Train, test, write."""
    began = time.monotonic()
    import keras
    import tensorflow as tf

    keras.utils.set_random_seed(0)
    imported = time.monotonic() - began
    options = {"image_size": (SIDE, SIDE), "batch_size": BATCH, "seed": 0}
    training, validation = keras.utils.image_dataset_from_directory(
        tree / "train", validation_split=0.1, subset="both", **options
    )
    testing = keras.utils.image_dataset_from_directory(tree / "test", shuffle=False, **options)
    classes, files = training.class_names, testing.file_paths
    flip, turn = keras.layers.RandomFlip("horizontal"), keras.layers.RandomRotation(0.1)
    augmented = training.map(lambda x, y: (turn(flip(x, training=True), training=True), y))
    training = augmented.prefetch(tf.data.AUTOTUNE).cache()
    validation, testing = (each.prefetch(tf.data.AUTOTUNE).cache() for each in (validation, testing))

    base = keras.applications.MobileNetV2(weights=None, input_shape=(SIDE, SIDE, 3), include_top=False)
    converted(base, weights)
    base.trainable = False
    inputs = keras.Input(shape=(SIDE, SIDE, 3))
    scaled = keras.layers.Rescaling([1 / (255 * s) for s in STD], [-m / s for m, s in zip(MEAN, STD, strict=True)])
    x = keras.layers.GlobalAveragePooling2D()(base(scaled(inputs), training=False))
    model = keras.Model(inputs, keras.layers.Dense(len(classes))(keras.layers.Dropout(0.2)(x)))

    def phase(optimizer: Any, epochs: int) -> list[float]:
        times = [time.monotonic()]
        noted = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: times.append(time.monotonic()))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizer=optimizer, loss=loss, metrics=["accuracy"])
        model.fit(training, epochs=epochs, validation_data=validation, verbose=2, callbacks=[noted])
        return outcome.laps(times)

    laps = phase(keras.optimizers.Adam(), frozen)
    probed = time.monotonic() - began
    if tuned:
        base.trainable = True
        phase(keras.optimizers.Adam(1e-5), tuned)
    trained = time.monotonic() - began
    answers = [classes[i] for i in model.predict(testing, verbose=0).argmax(1)]
    phases = {
        "imports": imported, "frozen": probed - imported, "tuned": trained - probed,
        "testing": time.monotonic() - began - trained,
    }  # fmt: skip
    versions = {"keras": keras.__version__, "tensorflow": tf.__version__}
    epochs = {"frozen": frozen, "tuned": tuned}
    outcome.write(out, tree, files, answers, epochs=epochs, laps=laps, phases=phases, versions=versions)


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:4]), *(int(argument) for argument in sys.argv[4:6]))
