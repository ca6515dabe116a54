"""Ways to answer better with a head that is fitted already: the mean with the mirror image or with crops, and a temperature for each
class.

    python benchmarks/answers.py --data ../shared/data

The head that wins the race on EfficientNet-Lite0, on the draws of `--suite depth`. Scaled by class is vector scaling
(Guo et al. 2017, arXiv 1706.04599): a factor and a constant for each class, fitted to out-of-fold answers, drawn towards the single
temperature that Headstart uses. Accuracy, log-loss in nats and calibration error on the test pictures.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from averaging import SIZES, draw_by_draw
from common import SETS
from depth import Case
from headstart.features.extract import batches, columns, with_views
from headstart.features.settle import transform_of
from headstart.tasks.classification import accuracy, ece, fit_temperature, log_loss, softmax
from headstart.views import VIEWS

import numpy as np  # isort: skip
import torch  # isort: skip

RESULTS = Path(__file__).parent / "results" / "answers.json"
DRAWS, SEEDS = (*SIZES, "600"), (0, 1)
DRAWN = 0.1  # nats per picture that a class pays for a factor of e, or a constant of one
WAYS = (
    "as it is", "with the mirror image", "with three augmented views", "scaled by class", "scaled, with the mirror image",
    "at the best temperature in hindsight",
)  # fmt: skip


def by_class(logits: np.ndarray, labels: np.ndarray, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """Factors and constants (K,) that make the labels likeliest, drawn towards one temperature by `DRAWN`."""
    z, y = torch.from_numpy(logits.astype(np.float64)), torch.from_numpy(labels)
    factor, constant = (torch.zeros(z.shape[1], dtype=torch.float64, requires_grad=True) for _ in range(2))
    solver = torch.optim.LBFGS([factor, constant], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        solver.zero_grad()
        scaled = z / temperature * factor.exp() + constant
        drawn = DRAWN * (factor.square().mean() + constant.square().mean())
        found = torch.nn.functional.cross_entropy(scaled, y) + drawn
        found.backward()
        return found

    solver.step(loss)
    return (factor.exp() / temperature).detach().numpy(), constant.detach().numpy()


def measured(name: str, place: Path, size: str, seed: int) -> dict[str, Any]:
    """Accuracy, log-loss and calibration error of every way."""
    case = Case.of(name, place.resolve(), size, seed)
    data, best, own = case.dataset, case.heads.best, case.features.own
    head, test = case.tuning.head(best, data.indices("train")), data.indices("test")
    turned = batches(
        data.images,
        test.tolist(),
        [transform_of(case.engine.backbone)],
        lambda pictures: case.engine.pooled(np.ascontiguousarray(pictures[:, :, ::-1])),
    )
    mirrored = np.concatenate([rows for _, rows in turned])
    plain = head.answers(case.features, test)
    pair = 0.5 * (plain + head.logits(mirrored[:, columns(own, head.taps)]))
    seen = with_views(case.features, [case.engine], data, case.store, VIEWS, only=test, seed=seed)
    views = np.mean([head.logits(rows) for rows in seen.in_views(head.taps, test, VIEWS)], axis=0)
    held = data.labels[case.heads.pool]
    temperature = fit_temperature(best.logits, held)
    factor, constant = by_class(best.logits, held, temperature)
    truth = data.labels[test]
    answers = (
        plain / temperature, pair / temperature, views / temperature, plain * factor + constant, pair * factor + constant,
        plain / fit_temperature(plain, truth),
    )  # fmt: skip
    row: dict[str, Any] = {"tested": len(test)}
    for way, logits in zip(WAYS, answers, strict=True):
        beliefs = softmax(logits)
        row[way] = [score(truth, beliefs) for score in (accuracy, log_loss, ece)]
    return row


if __name__ == "__main__":
    draw_by_draw(__doc__, RESULTS, SEEDS, measured, DRAWS, list(SETS))
