"""What bfloat16 does to answers: counted on test pictures, told by the run, and warned of where it is more than chance."""

from __future__ import annotations

import json
import time
from dataclasses import replace
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
from headstart.errors import UnreadableImage
from headstart.features.engine import Engine
from headstart.features.extract import extract
from headstart.features.precision import Precision
from headstart.features.settle import transform_of
from headstart.features.store import Store
from headstart.heads import Head
from headstart.model import Model
from headstart.options import Options
from headstart.proof import Proof, Rival
from tests.toys import SPEC, TinyNet, striped, stripes, tiny_backbone


def taught(backbone: Backbone, dataset: Dataset, store: Store, precision: Precision) -> tuple[Model, Proof]:
    """A model whose head is a least-squares fit to every picture's features as it computes them, and its answers to the test."""
    features = extract(backbone, dataset, store, engine=Engine(backbone, precision=precision))
    last = len(backbone.stages) - 1
    raw = np.column_stack([features.stages((last,)), np.ones(len(dataset))])
    weights = np.linalg.lstsq(raw, np.eye(3)[dataset.labels], rcond=None)[0].astype(np.float32)
    head = Head("ridge", (last,), 0.0, weights[:-1], weights[-1])
    tested = dataset.indices("test")
    logits = head.answers(features, tested)
    proof = Proof(None, None, tested, {"final": Rival(logits, logits)}, (), "")  # type: ignore[arg-type]
    return Model(backbone, head, dataset.classes, precision=precision), proof


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


def test_answers_are_counted_on_as_many_test_pictures_as_there_may_be(store: Store) -> None:
    dataset, backbone = striped(400), load_module(Blurred(), SPEC)
    model, proof = taught(backbone, dataset, store, "bfloat16")
    found = exactness(model, dataset, proof, store)
    assert found is not None and found.pictures == PICTURES < len(proof.indices)
    assert found.pictures - found.same >= found.lost + found.won > 0
    whole = exactness(model, dataset, replace(proof, indices=proof.indices[:50]), store)
    assert whole is not None and whole.pictures == 50
    labels, rounded = dataset.labels[proof.indices[:50]], proof.rivals["final"].logits[:50].argmax(1)
    pictures = np.stack([load_view(dataset.images, int(i), transform_of(backbone)) for i in proof.indices[:50]])
    exact = Model(backbone, model.head, dataset.classes).logits(pictures).argmax(1)
    assert whole.same == (rounded == exact).sum() < 50
    assert whole.lost - whole.won == (exact == labels).sum() - (rounded == labels).sum()


def test_nothing_is_told_where_there_is_nothing_to_look_at(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, backbone = striped(130), tiny_backbone()
    model, proof = taught(backbone, dataset, store, "float32")
    assert exactness(model, dataset, proof, store) is None
    model, proof = taught(backbone, dataset, store, "bfloat16")
    assert exactness(model, dataset, proof, store) is not None
    assert exactness(model, dataset, proof, store, deadline=time.monotonic() - 1) is None
    few = striped(60)
    assert not len(few.indices("test"))
    assert exactness(model, few, proof, store) is None

    def gone(*_: object, **__: object) -> None:
        raise UnreadableImage("it is gone")

    monkeypatch.setattr("headstart.diagnosis.exactness.extract_all", gone)
    assert exactness(model, dataset, proof, store) is None


@pytest.mark.parametrize(
    ("lost", "won", "warned"), [(0, 0, 0), (4, 0, 0), (5, 0, 1), (0, 9, 0), (7, 1, 1), (7, 3, 0)]
)  # fmt: skip
def test_a_sure_loss_of_right_answers_is_warned_of(lost: int, won: int, warned: int) -> None:
    found = Exactness(64, 64 - lost - won, lost, won)
    assert [(each.kind, each.severity) for each in found.findings] == [("bfloat16", "warning")] * warned
    assert all(found.sentence in each.message and "--precision float32" in each.next_step for each in found.findings)
    assert ("in float32 alone" in found.sentence) == (lost + won > 0)


def test_the_run_tells_it_whatever_the_order_of_the_pictures(tmp_path: Path, quick: None) -> None:
    plan = {
        "backbone": "module:TinyNet",
        "stages": ["stem", *(f"blocks.{place}" for place in range(4))],
        "rungs": [],
        "scratch_epochs": 1,
    }
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    options = Options(plan=str(tmp_path / "plan.json"), precision="bfloat16")
    pictures, labels = stripes(400)
    run = hs.fit((pictures, labels), tmp_path / "run", options, module=TinyNet())
    told = run.metrics["exactness"]
    assert told["pictures"] == PICTURES < len(run.predictions) and told["sentence"] in run.report_html
    turned = hs.fit((pictures[::-1], labels[::-1]), tmp_path / "turned", options, module=TinyNet())
    assert turned.metrics["exactness"] == told
    exact = Options(plan=options.plan, precision="float32")
    plain = hs.fit((pictures, labels), tmp_path / "plain", exact, module=TinyNet())
    assert plain.metrics["exactness"] is None and "plain float32" not in plain.report_html
