"""Two networks: their answers averaged, or one head on the features of both.

    python benchmarks/concatenated.py --data ../shared/data

Logistic heads on the last stages of EfficientNet-Lite0 and Lite2, on the draws of `--suite depth`: of each alone, the mean of their
calibrated answers, and one on both stages side by side, with a strength of its own.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from sklearn.metrics import balanced_accuracy_score

from averaging import SIZES, draw_by_draw
from common import SETS
from depth import Case
from headstart import runtime  # noqa: F401  (before torch, which then takes its patience with threads)
from headstart.backbones.catalog import load_backbone
from headstart.features.engine import Engine
from headstart.features.extract import extract
from headstart.heads import logistic_scores, solved
from headstart.solvers import principal_axes
from headstart.tasks.classification import fit_temperature

import numpy as np  # isort: skip

RESULTS = Path(__file__).parent / "results" / "concatenated.json"
SEEDS = (0,)
other = cache(lambda: Engine(load_backbone("tf_efficientnet_lite2")))


def measured(name: str, place: Path, size: str, seed: int) -> dict[str, Any]:
    """Accuracy and balanced accuracy of every way on the test pictures."""
    case = Case.of(name, place.resolve(), size, seed)
    data, pool, test = case.dataset, case.dataset.indices("train"), case.dataset.indices("test")
    labels, truth = data.labels[pool], data.labels[test]
    beside = extract(other().backbone, data, case.store, engine=other())
    first, second = (
        features.stages((len(backbone.stages) - 1,))
        for features, backbone in ((case.features.of(0), case.engine.backbone), (beside, other().backbone))
    )

    def calibrated(rows: np.ndarray) -> np.ndarray:
        """Test logits of the head of the strength that is best out of fold."""
        axes = principal_axes(rows[pool])
        best, *_ = logistic_scores(axes, labels, data.fold[pool], len(data.classes), (0,), 0)
        head = solved(axes, labels, len(data.classes), "logistic", (0,), best.strength, best.temperature)
        return head.logits(rows[test]) / np.float32(fit_temperature(best.logits, labels))

    one, two = calibrated(first), calibrated(second)
    ways = {
        "answers of both averaged": one + two,
        "features of both side by side": calibrated(np.concatenate([first, second], 1)),
        "Lite2": two,
        "Lite0": one,
    }
    scores = {
        way: [float(np.mean(logits.argmax(1) == truth)), float(balanced_accuracy_score(truth, logits.argmax(1)))]
        for way, logits in ways.items()
    }
    return {"images": len(pool), **scores}


if __name__ == "__main__":
    draw_by_draw(__doc__, RESULTS, SEEDS, measured, (*SIZES, "600"), list(SETS))
