"""Heads that were thought of and measured: other poolings, and discriminant analysis.

    python benchmarks/heads_tried.py --data ../shared/data

On the draws of `--suite depth`, the last stage of EfficientNet-Lite0. Poolings: the mean as Headstart takes it, the largest value, the
generalised mean with an exponent of 3 (Radenović et al. 2018, arXiv 1711.02512), two side by side; each with the logistic head whose
strength is best out of fold. LDA with Ledoit and Wolf's shrinkage, by scikit-learn.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import balanced_accuracy_score

from averaging import SIZES, draw_by_draw
from common import SETS
from contest import LITE
from depth import Case
from headstart.features.engine import normalize
from headstart.features.extract import batches
from headstart.features.settle import transform_of
from headstart.heads import logistic_scores, solved
from headstart.solvers import principal_axes

import numpy as np  # isort: skip
import timm  # isort: skip
import torch  # isort: skip

RESULTS = Path(__file__).parent / "results" / "heads_tried.json"
SEEDS = (0,)
POOLINGS = {"mean": ("mean",), "largest": ("largest",), "generalised mean": ("general",),
            "mean and largest": ("mean", "largest"), "mean and generalised mean": ("mean", "general")}  # fmt: skip


def pooled(case: Case) -> dict[str, np.ndarray]:
    """The last feature map of all pictures, pooled to (N, C) in each way; in plain float32."""
    backbone, data = case.engine.backbone, case.dataset
    network = timm.create_model(LITE, num_classes=0)
    network.load_state_dict(dict(backbone.state()))
    network.eval()

    def ways(pictures: np.ndarray) -> tuple[np.ndarray, ...]:
        with torch.inference_mode():
            values = network.forward_features(normalize(pictures, backbone.input, torch.device("cpu")))
            general = values.clamp(min=1e-6).pow(3).mean((2, 3)).pow(1 / 3)
            return values.mean((2, 3)).numpy(), values.amax((2, 3)).numpy(), general.numpy()

    found = [rows for _, rows in batches(data.images, range(len(data)), [transform_of(backbone)], ways)]
    return {
        name: np.concatenate([rows[place] for rows in found])
        for place, name in enumerate(("mean", "largest", "general"))
    }


def measured(name: str, place: Path, size: str, seed: int) -> dict[str, Any]:
    """Accuracy and balanced accuracy of every way on the test pictures."""
    case = Case.of(name, place.resolve(), size, seed)
    data, pool, test = case.dataset, case.dataset.indices("train"), case.dataset.indices("test")
    labels, classes, stages = data.labels[pool], len(data.classes), pooled(case)
    row: dict[str, Any] = {"images": len(pool), "largest_class": float(np.bincount(labels).max() / len(labels))}

    def told(way: str, answers: np.ndarray) -> None:
        truth = data.labels[test]
        row[way] = [float(np.mean(answers == truth)), float(balanced_accuracy_score(truth, answers))]

    for way, parts in POOLINGS.items():
        rows = np.concatenate([stages[part] for part in parts], 1)
        axes = principal_axes(rows[pool])
        best, *_ = logistic_scores(axes, labels, data.fold[pool], classes, (0,), 0)
        head = solved(axes, labels, classes, "logistic", (0,), best.strength, best.temperature)
        told(way, head.logits(rows[test]).argmax(1))
    mean, spread = stages["mean"][pool].mean(0), stages["mean"][pool].std(0) + 1e-6
    rows = (stages["mean"] - mean) / spread
    told(
        "LDA, mean",
        LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(rows[pool], labels).predict(rows[test]),
    )
    return row


if __name__ == "__main__":
    draw_by_draw(__doc__, RESULTS, SEEDS, measured, (*SIZES, "600"), list(SETS))
