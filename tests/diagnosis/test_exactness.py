"""What bfloat16 costs in answers: counted on the tested pictures, told by the run, and warned of where it is more than chance."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import headstart as hs
from headstart.backbones.backbone import Backbone
from headstart.backbones.from_module import load_module
from headstart.data.dataset import Dataset
from headstart.data.images import load_view
from headstart.diagnosis.exactness import PICTURES, Exactness, exactness
from headstart.features.engine import Engine
from headstart.features.extract import extract
from headstart.features.precision import Precision
from headstart.features.settle import transform_of
from headstart.features.store import Store
from headstart.heads import Head
from headstart.model import Model
from headstart.request import Options
from headstart.solvers import one_hot
from tests.toys import SPEC, TinyNet, striped, stripes, tiny_backbone


def taught(backbone: Backbone, dataset: Dataset, store: Store, precision: Precision) -> Model:
    """A model whose head is a least-squares fit to every picture's exact features of the last stage."""
    features = extract(backbone, dataset, store, engine=Engine(backbone, precision="float32", folded=False))
    last = len(backbone.stages) - 1
    raw = np.column_stack([features.stages((last,)), np.ones(len(dataset))])
    weights = np.linalg.lstsq(raw, one_hot(dataset.labels, 3, torch.device("cpu")).numpy(), rcond=None)[0]
    head = Head("ridge", (last,), 0.0, weights[:-1].astype(np.float32), weights[-1].astype(np.float32))
    return Model(backbone, head, dataset.classes, precision=precision)


class Blurred(nn.Module):
    """A network that adds a large offset and takes it off again, which costs bfloat16 its digits."""

    def __init__(self) -> None:
        super().__init__()
        self.within, self.offset, self.off = TinyNet(), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        with torch.no_grad():
            for layer, moved in ((self.offset, 300.0), (self.off, -300.0)):
                layer.weight.copy_(torch.eye(8)[:, :, None, None])
                layer.bias.fill_(moved)  # type: ignore[union-attr]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.within.blocks(self.within.stem(x))
        return torch.as_tensor(self.off(self.offset(x))).mean((2, 3))


def test_answers_are_counted_on_an_even_choice_of_the_tested_pictures(store: Store) -> None:
    dataset, backbone = striped(400), load_module(Blurred(), SPEC)
    model, tested = taught(backbone, dataset, store, "bfloat16"), dataset.indices("test")
    found = exactness(model, dataset, tested, store)
    assert found is not None and found.sealed and PICTURES / 2 < found.pictures <= PICTURES
    some = np.sort(tested)[:: -(-len(tested) // PICTURES)]
    pictures = np.stack([load_view(dataset.images, int(i), transform_of(backbone)) for i in some])
    exact = Model(backbone, model.head, dataset.classes).logits(pictures).argmax(1)
    rounded = np.concatenate([model.logits(part).argmax(1) for part in np.array_split(pictures, len(pictures) // 4)])
    labels = dataset.labels[some]
    assert (found.right, found.right_exactly) == ((rounded == labels).sum(), (exact == labels).sum())
    assert found.same == (rounded == exact).sum() < found.pictures
    assert found.harms == (found.right_exactly - found.right > max(1, found.error))


def test_float32_has_nothing_to_tell_and_no_picture_is_run_past_the_deadline(store: Store) -> None:
    dataset, backbone = striped(130), tiny_backbone()
    tested = dataset.indices("test")
    assert exactness(taught(backbone, dataset, store, "float32"), dataset, tested, store) is None
    model = taught(backbone, dataset, store, "bfloat16")
    assert exactness(model, dataset, tested, store, deadline=time.monotonic() - 1) is None
    assert exactness(model, dataset, tested, store) is not None


@pytest.mark.parametrize(
    ("right", "right_exactly", "harms"),
    [(60, 60, False), (59, 60, False), (58, 60, True), (60, 57, False), (63, 64, False), (62, 64, True), (28, 32, False)],
)  # fmt: skip
def test_a_loss_beyond_the_standard_error_is_warned_of(right: int, right_exactly: int, harms: bool) -> None:
    found = Exactness(64, 60, right, right_exactly, True)
    assert found.error == pytest.approx((64 * (right_exactly / 64) * (1 - right_exactly / 64)) ** 0.5)
    assert found.harms is harms
    assert [each.kind for each in found.findings] == ["bfloat16"] * harms
    assert f"{right} are right, and {right_exactly} in float32" in found.sentence
    for each in found.findings:
        assert each.severity == "warning" and "--precision float32" in each.next_step


def test_the_run_tells_it(tmp_path: Path, quick: None) -> None:
    plan = {
        "backbone": "module:TinyNet",
        "stages": ["stem", *(f"blocks.{place}" for place in range(4))],
        "rungs": [],
        "scratch_epochs": 1,
    }
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    options = Options(plan=str(tmp_path / "plan.json"), precision="bfloat16")
    run = hs.fit(stripes(130), tmp_path / "run", options, module=TinyNet())
    told = run.metrics["exactness"]
    assert told["pictures"] == len(run.predictions) and told["sentence"] in run.report_html
    assert told["right"] == sum(row["label"] == row["predicted"] for row in run.predictions)
    plain = hs.fit(stripes(130), tmp_path / "plain", Options(plan=options.plan, precision="float32"), module=TinyNet())
    assert plain.metrics["exactness"] is None and "computes in bfloat16" not in plain.report_html
