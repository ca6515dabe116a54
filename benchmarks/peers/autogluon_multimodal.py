"""AutoGluon MultiModal on pictures alone, on the same network and weights as the others, with a limit on its time.

    python autogluon_multimodal.py TREE WEIGHTS OUT.json SECONDS

Its preset for networks of this size, `medium_quality`, with nothing changed but the network: all of it trains with AdamW at 4e-4,
less by a tenth from layer to layer, for 20 epochs or until it stops by itself, steps of up to 128 pictures in batches of 8, trivial
augmentation, the best three checkpoints averaged; its validation set is a part of train/ that it draws itself. SECONDS are its
`time_limit`, which bounds the training loop: imports, its look at the data and the averaging come on top. Where they end before its
first validation, there is no checkpoint to choose, and the network is taken as it is then.
"""

from __future__ import annotations

import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import outcome

BACKBONE = "tf_efficientnet_lite0"


def main(tree: Path, weights: Path, out: Path, seconds: float) -> None:
    """Train, test, write."""
    began = time.monotonic()
    import pandas
    import timm
    from autogluon.multimodal import MultiModalPredictor
    from autogluon.multimodal.models import timm_image
    from safetensors.torch import load_file

    imported = time.monotonic() - began
    loaded = []

    def from_file(name: str, pretrained: bool, num_classes: int) -> Any:
        """The network that AutoGluon asks timm for, from the file instead of a hub; its classifier is new in both."""
        net = timm.create_model(name, num_classes=num_classes)
        head = {f"classifier.{key}": value for key, value in net.classifier.state_dict().items()}
        net.load_state_dict({**head, **load_file(weights)}, strict=True)
        loaded.append(name)
        return net

    timm_image.create_model = from_file
    pictures = sorted((tree / "train").rglob("*.*"))
    table = {"image": [str(path) for path in pictures], "label": [path.parent.name for path in pictures]}
    predictor = MultiModalPredictor(
        label="label",
        problem_type="classification",
        path=str(out.with_suffix("")),
        verbosity=0,
        enable_progress_bar=False,
    )
    predictor.fit(
        pandas.DataFrame(table),
        presets="medium_quality",
        hyperparameters={"model.names": ["timm_image"], "model.timm_image.checkpoint_name": BACKBONE},
        time_limit=seconds,
    )
    if loaded != [BACKBONE]:
        raise RuntimeError(f"AutoGluon built {loaded} from the given weights, expected [{BACKBONE!r}]")
    trained = time.monotonic() - began
    files = sorted((tree / "test").rglob("*.*"))
    answers = predictor.predict({"image": [str(path) for path in files]}, as_pandas=False).tolist()
    phases = {"imports": imported, "training": trained - imported, "testing": time.monotonic() - began - trained}
    versions = {name: version(name) for name in ("autogluon.multimodal", "torch", "timm")}
    outcome.write(out, tree, files, answers, limit=seconds, phases=phases, versions=versions)


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:4]), float(sys.argv[4]))
