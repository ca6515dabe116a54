"""Overfitting and drift: read off the curves and the features; nothing is said where nothing was fine-tuned."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from headstart.diagnosis.overfit import cosines, drift, overfit
from headstart.features.engine import Engine
from headstart.features.extract import extract
from headstart.features.store import Store
from headstart.heads import Head
from headstart.ladder import Finetuned, RungResult
from headstart.model import Model
from headstart.plan import Rung
from headstart.train import Epoch
from tests.toys import striped, tiny_backbone

STAGES = ("stem", "blocks.0", "blocks.1")


def rung(held: list[float], trained: list[float], *, kept: bool = True, cut: int = 1) -> RungResult:
    """Two curves, one a little above the other."""
    curves = tuple(
        tuple(Epoch(n, a + more, b + more, 0.9) for n, (a, b) in enumerate(zip(trained, held, strict=True)))
        for more in (0.0, 0.02)
    )
    return RungResult(
        Rung(cut=cut, epochs=2, views=2), 0.9, 0.1, 0.01, (0.1, 0.02), 1.0, len(held), kept, True, curves, 1.0, ""
    )


def tuned(*rungs: RungResult) -> Finetuned:
    backbone = tiny_backbone()
    head = Head("logistic", (4,), 1e-4, np.zeros((8, 3), np.float32), np.zeros(3, np.float32))
    return Finetuned(backbone, head, rungs, np.arange(3), np.zeros((3, 3), np.float32), True, ())


def test_held_out_loss_that_rises_again_is_noted() -> None:
    (found,) = overfit(tuned(rung([0.5, 0.4, 0.45, 0.6], [0.5, 0.4, 0.2, 0.1])), STAGES)
    assert (found.kind, found.severity) == ("overfit", "note")
    assert "Rung 1 (from blocks.0 on) overfits: its held-out loss is least after epoch 2 of 4" in found.message
    assert "Answers do not suffer" in found.message
    assert "at 0.410, and ends at 0.610, while its training loss falls from 0.410 to 0.110" in found.message


def test_whether_overfitting_hurts_is_told() -> None:
    risen = rung([0.5, 0.4, 0.6], [0.5, 0.4, 0.1])
    curves = tuple(
        tuple(replace(row, val_accuracy=right) for row, right in zip(curve, (0.8, 0.9, 0.85), strict=True))
        for curve in risen.curves
    )
    (found,) = overfit(tuned(replace(risen, curves=curves)), STAGES)
    assert "It hurts: of the held-out pictures 85.0 % are right at the end, 90.0 % were." in found.message


@pytest.mark.parametrize(
    ("held", "trained", "kept"),
    [
        ([0.5, 0.4, 0.39, 0.4], [0.5, 0.4, 0.3, 0.2], True),  # flat
        ([0.5, 0.4, 0.5, 0.6], [0.5, 0.4, 0.5, 0.6], True),  # it does not fit the training pictures either
        ([0.5, 0.4, 0.5, 0.6], [0.5, 0.4, 0.2, 0.1], False),  # no part of the model
        ([float("nan")] * 3, [0.5, 0.4, 0.3], True),  # nothing was held out
        ([0.5], [0.5], True),
    ],
)
def test_other_curves_are_not_noted(held: list[float], trained: list[float], kept: bool) -> None:
    assert overfit(tuned(rung(held, trained, kept=kept)), STAGES) == ()
    assert overfit(tuned(), STAGES) == ()


def test_drift_is_that_of_the_stages_that_were_trained(store: Store) -> None:
    dataset, before = striped(40), tiny_backbone()
    features = extract(before, dataset, store, engine=Engine(before, precision="float32"))
    moved = copy.deepcopy(before)
    with torch.no_grad():
        for stage in moved.stages[3:]:
            for weight in stage.parameters():
                weight.add_(0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    result = tuned(rung([0.5, 0.4], [0.5, 0.4], cut=3))
    model = Model(moved, result.head, dataset.classes, precision="float32")
    (found,) = drift(model, features, result, dataset, store)
    assert (found.kind, found.severity) == ("drift", "note")
    assert [item.split(":")[0] for item in found.items] == list(before.names[3:]), "frozen stages do not move"
    same = Model(before, result.head, dataset.classes, precision="float32")
    (still,) = drift(same, features, result, dataset, store)
    assert all(item.endswith("mean cosine 1.000") for item in still.items)
    assert float(found.items[-1].split()[-1]) < 0.999
    assert drift(same, features, tuned(), dataset, store) == ()
    assert drift(same, features, tuned(rung([0.5], [0.5], kept=False)), dataset, store) == ()


def test_cosines_by_hand() -> None:
    a, b = np.array([[1, 0], [1, 1], [0, 0]], np.float32), np.array([[2, 0], [1, 0], [1, 0]], np.float32)
    assert np.allclose(cosines(a, b), [1, 0.5**0.5, 0])
