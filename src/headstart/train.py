"""The one training loop: it trains `stages[cut:]` and a linear head from activations at the cut.

Practice it follows: deeper stages learn slower (Howard & Ruder 2018), normalisation statistics stay those of the source, one
cycle of the learning rate (Smith 2018). Where the activations come from, the store or the pictures, makes no difference to it.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from headstart import runtime
from headstart.features.precision import Precision, autocast
from headstart.features.store import Artifact
from headstart.plan import Rung
from headstart.suffix import Net, Source, held_out_logits


@dataclass(frozen=True)
class Epoch:
    """One pass: mean training loss, loss and accuracy on the pictures held out (NaN where none are), and the seconds that it took,
    which tell two passes not apart."""

    epoch: int
    train_loss: float
    val_loss: float
    val_accuracy: float
    seconds: float = field(default=0.0, compare=False)


@dataclass(frozen=True, eq=False)
class Trained:
    """The end of one training: the weights after its last whole epoch, the curve, and whether it ran to its end. It ends early where
    time runs out, or where it `diverged`: its loss or its weights are no numbers any more."""

    weights: dict[str, Tensor]
    curve: tuple[Epoch, ...]
    complete: bool
    diverged: bool = False


@final
class Checkpoint:
    """The state of a training after a whole epoch, kept in the store until the training ends.

    Epochs shorter than `every` seconds are saved together, so that saving costs little.
    """

    def __init__(self, artifact: Artifact, every: float = 1.0) -> None:
        self._artifact, self._every, self._saved = artifact, every, time.perf_counter()

    def load(self, net: Net, optimizer: torch.optim.AdamW) -> list[Epoch]:
        """Restore net and optimizer; the curve so far, empty where there is nothing to restore."""
        stored = self._artifact.load()
        if stored is None:
            return []
        record, arrays = stored
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        net.load({n.removeprefix("now."): t for n, t in tensors.items() if n.startswith("now.")})
        moments: dict[int, dict[str, Tensor]] = {}
        trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for name, tensor in tensors.items():
            if name.startswith("adam."):
                _, place, field = name.split(".")
                own = trained[int(place)]  # a fused step takes it that moments lie in memory as their parameter does
                alike = torch.empty_like(own).copy_(tensor) if tensor.shape == own.shape else tensor
                moments.setdefault(int(place), {})[field] = alike
        optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
        return [Epoch(**row) for row in record["curve"]]

    def save(self, net: Net, optimizer: torch.optim.AdamW, curve: list[Epoch]) -> None:
        """Keep the state after the epoch that just ended, where it is time to."""
        if time.perf_counter() - self._saved < self._every:
            return
        tensors = {f"now.{name}": value for name, value in net.weights().items()}
        for place, moments in optimizer.state_dict()["state"].items():
            tensors |= {f"adam.{place}.{field}": value for field, value in moments.items()}
        record = {"curve": [vars(row) for row in curve]}
        self._artifact.save(record, {name: value.cpu().numpy() for name, value in tensors.items()})
        self._saved = time.perf_counter()

    def drop(self) -> None:
        """The training has ended; its result is kept elsewhere."""
        self._artifact.drop()


def one_cycle(step: int, steps: int, warm: float = 0.3) -> float:
    """Factor of the peak learning rate: a cosine up over the first `warm` share of the steps, a cosine down to 0 after it."""
    turn = max(1.0, warm * steps)
    if step < turn:
        return 0.04 + 0.96 * 0.5 * (1 - math.cos(math.pi * step / turn))
    return 0.5 * (1 + math.cos(math.pi * (step - turn) / max(1.0, steps - turn)))


def optimizer_for(net: Net, rung: Rung) -> torch.optim.AdamW:
    """AdamW over exactly what takes a gradient, one group per stage, slower the deeper it lies; no decay on biases and norms."""
    groups: list[dict[str, Any]] = []
    stages = [[p for p in stage.parameters() if p.requires_grad] for stage in list(net.backbone.stages)[net.cut :]]
    for depth, parameters in enumerate(reversed(stages)):
        rate = rung.lr_body * rung.lr_decay**depth
        for chosen, decay in (
            ([p for p in parameters if p.ndim > 1], rung.weight_decay),
            ([p for p in parameters if p.ndim <= 1], 0.0),
        ):
            if chosen:
                groups.append({"params": chosen, "lr": rate, "peak": rate, "weight_decay": decay})
    head = list(net.head.parameters())
    groups.append({"params": head, "lr": rung.lr_head, "peak": rung.lr_head, "weight_decay": rung.weight_decay})
    return torch.optim.AdamW(groups, fused=head[0].device.type in ("cpu", "cuda") or None)


def train(
    net: Net,
    source: Source,
    labels: NDArray[np.int64],
    fit: NDArray[np.int64],
    held: NDArray[np.int64],
    rung: Rung,
    *,
    seed: int,
    checkpoint: Checkpoint | None = None,
    precision: Precision = "float32",
    deadline: float = math.inf,
    advance: runtime.Advance = runtime.nothing,
) -> Trained:
    """Train the net on the pictures `fit`, and watch the pictures `held`, which choose nothing: the weights are those at the end of
    the schedule. The luckiest epoch would be judged too well by the pictures that chose it, and does not come again on others.

    Every random draw comes from (`seed`, epoch), so a run resumed from its checkpoint ends as the uninterrupted one. Past `deadline`
    (on `time.monotonic`'s clock), or once it diverges, it ends with the weights after its last whole epoch.
    """
    device = net.head.weight.device
    net.unfreeze(rung)
    optimizer = optimizer_for(net, rung)
    per_epoch = max(1, math.ceil(len(fit) / rung.batch))
    curve = checkpoint.load(net, optimizer) if checkpoint else []
    whole = net.weights()
    if curve:
        advance(len(curve))
    target = torch.from_numpy(labels).to(device)
    for epoch in range(len(curve), rung.epochs):
        began, draw = time.perf_counter(), np.random.default_rng([seed, epoch])
        torch.manual_seed(int(draw.integers(2**31)))  # for dropout in the stages that train
        order, views = draw.permutation(fit), draw.integers(rung.views, size=len(fit))
        net.unfreeze(rung)
        total = torch.zeros((), device=device)
        for place in range(per_epoch):
            if time.monotonic() > deadline:
                net.load(whole)
                return Trained(net.weights(), tuple(curve), False)
            part = slice(place * rung.batch, (place + 1) * rung.batch)
            factor = one_cycle(epoch * per_epoch + place, rung.epochs * per_epoch)
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * factor
            with autocast(device, precision):
                logits = net(*source.batch(order[part], views[part], device))
            loss = nn.functional.cross_entropy(logits.float(), target[order[part]], label_smoothing=rung.smoothing)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total += loss.detach() * len(order[part])
        if not (math.isfinite(float(total)) and _finite(optimizer)):
            net.load(whole)
            return Trained(net.weights(), tuple(curve), False, diverged=True)
        judged = _judged(net, source, labels, held, epoch, float(total) / max(1, len(fit)), precision)
        curve.append(replace(judged, seconds=time.perf_counter() - began))
        whole = net.weights()
        if checkpoint:
            checkpoint.save(net, optimizer, curve)
        advance(1, **({"accuracy": f"{curve[-1].val_accuracy:.3f}"} if len(held) else {}))
    return Trained(net.weights(), tuple(curve), True)


def _finite(optimizer: torch.optim.AdamW) -> bool:
    """Whether all that trains is made of numbers."""
    return all(bool(each.isfinite().all()) for group in optimizer.param_groups for each in group["params"])


def _judged(
    net: Net,
    source: Source,
    labels: NDArray[np.int64],
    held: NDArray[np.int64],
    epoch: int,
    train_loss: float,
    precision: Precision,
) -> Epoch:
    if not len(held):
        return Epoch(epoch, train_loss, math.nan, math.nan)
    logits, target = torch.from_numpy(held_out_logits(net, source, held, precision)), torch.from_numpy(labels[held])
    loss = float(nn.functional.cross_entropy(logits, target))
    return Epoch(epoch, train_loss, loss, float((logits.argmax(1) == target).float().mean()))
