"""What weights for classes give where some are rare.

    python benchmarks/class_weights.py --data ../shared/data

The draws of `--suite depth` with up to 600 pictures, thinned so that the commonest class keeps all it has and the rarest a tenth of
that, the others between them on an exponential curve (Cui et al. 2019, arXiv 1901.05555); which is which is drawn. The logistic head
on the last stage of EfficientNet-Lite0: as it is, fitted with classes that weigh the same, and with the logarithm of each class's
frequency taken off its calibrated logits (Menon et al. 2021, arXiv 2007.07314). Accuracy where classes are as common as in training,
by weighing the test pictures, and balanced accuracy.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from averaging import draw_by_draw
from common import SETS
from depth import Case
from headstart.heads import logistic_scores, solved
from headstart.solvers import principal_axes, spread
from headstart.tasks.classification import fit_temperature

import numpy as np  # isort: skip
import torch  # isort: skip
from sklearn.linear_model import LogisticRegression  # isort: skip

RESULTS = Path(__file__).parent / "results" / "class_weights.json"
SEEDS, RAREST = (0, 1, 2), 0.1
PLAIN, WEIGHED, SHIFTED = "as it is", "classes weigh the same", "less the logarithm of the frequency"
WAYS = (PLAIN, WEIGHED, SHIFTED)


def tailed(labels: np.ndarray, classes: int, seed: int) -> np.ndarray:
    """Places of the pictures that are left of `labels`; of every class three at least, where it has them."""
    draw = np.random.default_rng(seed)
    rank, most = draw.permutation(classes), np.bincount(labels).max()
    left = []
    for label in range(classes):
        own = draw.permutation(np.flatnonzero(labels == label))
        left.append(own[: max(3, round(most * RAREST ** (rank[label] / (classes - 1))))])
    return np.sort(np.concatenate(left))


def measured(name: str, place: Path, size: str, seed: int) -> dict[str, Any]:
    """Accuracy at the frequencies of the training pictures, and balanced accuracy, of every way."""
    case = Case.of(name, place.resolve(), size, seed)
    data, classes, last = case.dataset, len(case.dataset.classes), (len(case.features.own) - 1,)
    pool, test = data.indices("train"), data.indices("test")
    pool = pool[tailed(data.labels[pool], classes, seed)]
    labels, truth = data.labels[pool], data.labels[test]
    rows, shown = (np.asarray(case.features.stages(last, places), np.float32) for places in (pool, test))
    often = np.bincount(labels, minlength=classes) / len(labels)
    weights = (often / np.maximum(np.bincount(truth, minlength=classes), 1))[truth]
    axes = principal_axes(rows)
    best, *_ = logistic_scores(axes, labels, data.fold[pool], classes, last)
    logits = solved(axes, labels, classes, "logistic", last, best.strength, best.temperature).logits(shown)
    heat = fit_temperature(best.logits, labels)
    scale = spread(torch.from_numpy(rows)).numpy() * rows.shape[1] ** 0.5  # the same penalty on the same features
    head = LogisticRegression(C=1 / (best.strength * len(pool)), class_weight="balanced", max_iter=2000)
    weighed = head.fit((rows - rows.mean(0)) / scale, labels).predict((shown - rows.mean(0)) / scale)
    answers = {PLAIN: logits.argmax(1), WEIGHED: weighed, SHIFTED: (logits / heat - np.log(often)).argmax(1)}
    row: dict[str, Any] = {"images": len(pool), "smallest": int(np.bincount(labels, minlength=classes).min())}
    for way in WAYS:
        right = answers[way] == truth
        row[way] = [
            float(np.average(right, weights=weights)),
            float(np.mean([right[truth == k].mean() for k in np.unique(truth)])),
        ]
    return row


if __name__ == "__main__":
    draw_by_draw(__doc__, RESULTS, SEEDS, measured, ("600",), list(SETS))
