"""fastai as its tutorial does it: a vision learner on the timm network, `fine_tune(5)`, on a folder tree.

    python fastai_fine_tune.py TREE WEIGHTS OUT.json [EPOCHS_TUNED]

TREE holds train/ and test/ with a folder per class; WEIGHTS are those of the timm network. A fifth of train/ is its validation
set, as `ImageDataLoaders.from_folder` has it in the tutorial; the weights are loaded into the body that fastai makes of it. Its
batches of 64 become as small as four fifths of train/ where that holds fewer: fastai would train on none.
The process that trains decodes as well, which two cores like better than fastai's own choice of workers (benchmarks/fairness.py);
PEER_WORKERS=N in the environment asks for others, and an empty one for that choice.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import outcome

BACKBONE = "tf_efficientnet_lite0"


def main(tree: Path, weights: Path, out: Path, tuned: int = 5) -> None:
    """Train, test, write."""
    began = time.monotonic()
    import fastai
    import torch
    from fastai.callback.core import Callback
    from fastai.vision.all import ImageDataLoaders, Normalize, Resize, accuracy, aug_transforms, vision_learner
    from safetensors.torch import load_file

    torch.manual_seed(0)
    imported = time.monotonic() - began
    mean_and_std = [0.5, 0.5, 0.5], [0.5, 0.5, 0.5]  # what this network was trained with
    pictures = list((tree / "train").rglob("*.*"))
    loaders = ImageDataLoaders.from_folder(
        tree / "train",
        bs=min(64, 4 * len(pictures) // 5),
        valid_pct=0.2,
        seed=42,
        item_tfms=Resize(224),
        batch_tfms=[*aug_transforms(), Normalize.from_stats(*mean_and_std)],
        num_workers=int(workers) if (workers := os.environ.get("PEER_WORKERS", "0")) else None,
    )
    learner = vision_learner(loaders, BACKBONE, pretrained=False, normalize=False, metrics=accuracy)
    learner.model[0].model.load_state_dict(load_file(weights), strict=True)
    learner.freeze()
    times, noted = [time.monotonic()], Callback()
    noted.after_epoch = lambda: times.append(time.monotonic())
    learner.fine_tune(tuned, cbs=noted)
    trained = time.monotonic() - began
    files = sorted((tree / "test").rglob("*.*"))
    believed, _ = learner.get_preds(dl=loaders.test_dl(files))
    answers = [loaders.vocab[i] for i in believed.argmax(1).tolist()]
    phases = {"imports": imported, "training": trained - imported, "testing": time.monotonic() - began - trained}
    versions = {"fastai": fastai.__version__, "torch": torch.__version__}
    outcome.write(out, tree, files, answers, laps=outcome.laps(times), phases=phases, versions=versions)


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:4]), *(int(argument) for argument in sys.argv[4:5]))
