"""Headstart from Python: the main job in one call, the same by its layers, and a training loop of your own.

Run it with `python examples/python_api.py`; it uses 120 handwritten digits that come with `pip install '.[demo]'`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

import headstart as hs
from headstart.demo import digits
from headstart.features.engine import normalize
from headstart.features.extract import batches, transform_of


def main() -> None:
    """Three ways in, from the highest to the lowest."""
    pixels, labels = digits()
    chosen = np.concatenate([np.flatnonzero(labels == digit)[:12] for digit in range(10)])
    source = pixels[chosen], labels[chosen]
    in_one_call(source)
    by_layers(source)
    with_your_own_loop(source)


def in_one_call(source: tuple[np.ndarray, np.ndarray]) -> None:
    """Fit, read the verdict, save, load, predict."""
    run = hs.fit(source, options=hs.Options(plan="head", budget=60.0))
    print(run.verdict.sentence)
    with tempfile.TemporaryDirectory() as folder:
        hs.save(run.model, Path(folder))
        model = hs.load(folder)
    for answer in model.predict(source[0][:3]):
        print(f"  {answer.path} is a {answer.label} ({answer.probability:.2f}), else a {answer.second}")


def by_layers(source: tuple[np.ndarray, np.ndarray]) -> None:
    """Pooled features of every stage as a NumPy array: here with scikit-learn on two stages of choice."""
    dataset = hs.load_dataset(source)
    backbone = hs.load_backbone("tf_efficientnet_lite0")
    features = hs.extract(backbone, dataset, hs.Store())  # in the store already: nothing is computed twice
    train, test = dataset.indices("train"), dataset.indices("test")
    taps = (5, 6)
    mean, spread = features.stages(taps, train).mean(0), features.stages(taps, train).std(0) + 1e-6
    classifier = LogisticRegression(C=0.01, max_iter=500)
    classifier.fit((features.stages(taps, train) - mean) / spread, dataset.labels[train])
    score = classifier.score((features.stages(taps, test) - mean) / spread, dataset.labels[test])
    print(f"scikit-learn on {' and '.join(backbone.names[tap] for tap in taps)}: {100 * score:.1f} % of the test set")


def with_your_own_loop(source: tuple[np.ndarray, np.ndarray], cut: int = 8) -> None:
    """Stages are plain PyTorch modules: run the frozen ones, train the others."""
    dataset = hs.load_dataset(source)
    backbone = hs.load_backbone("tf_efficientnet_lite0")
    backbone.train_from(cut)
    head = torch.nn.Linear(backbone.widths[-1], len(dataset.classes))
    trained = [p for p in backbone.parameters() if p.requires_grad] + list(head.parameters())
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    losses = []
    pool = dataset.indices("train")[:32].tolist()
    for indices, pictures in batches(dataset.images, pool, [transform_of(backbone)], lambda views: views):
        with torch.no_grad():
            at_cut = backbone.run(normalize(pictures, backbone.input, torch.device("cpu")), 0, cut)
        for _ in range(5):
            logits = head(backbone.pooled(at_cut, cut)[-1])
            loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(dataset.labels[indices]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    print(f"stages from {backbone.names[cut]} on and a new head: loss {losses[0]:.2f}, later {losses[-1]:.2f}")


if __name__ == "__main__":
    main()
