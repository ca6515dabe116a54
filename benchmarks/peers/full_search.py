"""Fine-tuning of the whole network, its learning rate searched: what a person does who trusts neither frozen features nor defaults.

    python full_search.py TREE WEIGHTS OUT.json

Each of three rates trains from the source weights on four fifths of train/, class by class, and answers the last fifth; the rate
with the most right answers (then the least log-loss) trains on all of it. AdamW, one cycle, a new head at ten times the rate, timm's
transforms; batch statistics stay those of the source. As many epochs as see 3,200 pictures, 5 at least and 15 at most; batches of
32, of 8 below 200 pictures, where few epochs have few steps.
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import outcome

RATES = (1e-4, 3e-4, 1e-3)


def main(tree: Path, weights: Path, out: Path) -> None:
    """Search, train, test, write."""
    began = time.monotonic()
    import timm
    import torch
    from pytorch import BATCH, batches, logits, network, tested, transform
    from torch.utils.data import Subset
    from torchvision.datasets import ImageFolder

    imported = time.monotonic() - began
    source = network(weights)
    training = ImageFolder(tree / "train", transform(source, training=True))
    clean = ImageFolder(tree / "train", transform(source))
    labels = torch.tensor(training.targets)

    def trained(rate: float, chosen: list[int]) -> Any:
        torch.manual_seed(0)
        net = network(weights)
        model = torch.nn.Sequential(net, torch.nn.Linear(net.num_features, len(training.classes)))
        epochs = max(5, min(15, round(3200 / len(chosen))))
        size = BATCH if len(chosen) >= 200 else 8
        groups = [
            {"params": list(part.parameters()), "lr": lr} for part, lr in zip(model, (rate, 10 * rate), strict=True)
        ]
        optimizer = torch.optim.AdamW(groups, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, [g["lr"] for g in groups], total_steps=epochs * -(-len(chosen) // size)
        )
        for _ in range(epochs):
            for pictures, given in batches(Subset(training, chosen), shuffle=True, size=size):
                answer = model(pictures.to(memory_format=torch.channels_last))
                loss = torch.nn.functional.cross_entropy(answer, given)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                schedule.step()
        return model

    places: dict[int, list[int]] = defaultdict(list)
    for place in torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)).tolist():
        places[int(labels[place])].append(place)
    held = sorted(place for members in places.values() for place in members[: len(members) // 5])
    fit = sorted(set(range(len(labels))) - set(held))

    def score(rate: float) -> tuple[float, float]:
        found = logits(trained(rate, fit), Subset(clean, held))
        right = float((found.argmax(1) == labels[held]).float().mean())
        return right, -float(torch.nn.functional.cross_entropy(found, labels[held]))

    scores = {rate: score(rate) for rate in RATES}
    rate = max(scores, key=lambda each: scores[each])
    searched = time.monotonic() - began
    model = trained(rate, list(range(len(labels))))
    done = time.monotonic() - began
    files, answers = tested(model, tree, transform(source), training.classes)
    phases = {
        "imports": imported, "search": searched - imported, "tuned": done - searched,
        "testing": time.monotonic() - began - done,
    }  # fmt: skip
    versions = {"torch": torch.__version__, "timm": timm.__version__}
    outcome.write(out, tree, files, answers, rate=rate, phases=phases, versions=versions)


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:]))
