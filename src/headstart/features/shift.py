"""How far pictures lie from what a backbone was trained on, told without a single picture of that source.

A network with batch normalisation carries the mean and the variance that every channel had on its source. Beside those that the
channel has on the pictures at hand they give two normal distributions, and these a squared Hellinger distance: 0 where they are alike,
1 where they have nothing in common. Averaged over the channels of a layer, the layers of a stage and the stages it is the shift. (That
these statistics hold the domain: Li et al. 2016, Revisiting Batch Normalization for Practical Domain Adaptation, arXiv 1603.04779.)
Where the source's classifier came with the weights, the entropy of its answers tells the same in another way; networks without running
statistics have that alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import entr
from torch import Tensor, nn
from torch.nn import functional

from headstart import runtime
from headstart.backbones.backbone import Backbone
from headstart.data.dataset import Dataset
from headstart.data.images import load_view
from headstart.errors import UnreadableImage
from headstart.features.engine import normalize
from headstart.features.extract import Features
from headstart.features.settle import key_of, transform_of
from headstart.features.store import Store

PICTURES = 64  # whose statistics are compared: each gives thousands of positions, but few scenes
ANSWERS = 2000  # whose source answers are looked at, at most
_STEP = 16
_LEAST = 1e-10  # of a variance
VERSION = 1  # of what is remembered


@dataclass(frozen=True)
class Shift:
    """`stages`: the shift of each stage, None where it keeps no running statistics; `distance`, their mean, None where none does.

    `entropy`: mean entropy of the source classifier's answers as a share of the largest possible, None where it is not known;
    `classes` is how many it tells apart. `pictures` are how many were looked at.
    """

    stages: tuple[float | None, ...]
    distance: float | None
    entropy: float | None
    classes: int
    pictures: int


def shift(
    backbone: Backbone,
    dataset: Dataset,
    features: Features,
    store: Store,
    progress: runtime.Progress = runtime.silent,
) -> Shift:
    """The shift of a data set's training pictures; what was measured once is remembered.

    `features` are the backbone's own, of the weights that it came with. Pictures that cannot be read any more are left out.
    """
    pool = dataset.indices("train")
    some = sorted(pool.tolist(), key=lambda i: dataset.digests[i])[:PICTURES]
    spec = {**key_of(backbone, None, 0, 0), "pictures": [dataset.digests[i] for i in some], "version": VERSION}
    memo = store.artifact("shift", spec)
    known = memo.load()
    if known is None:
        transform = transform_of(backbone)

        def read(index: int) -> NDArray[np.uint8] | None:
            with suppress(UnreadableImage):  # gone since it was extracted: no reason to end a run
                return load_view(dataset.images, index, transform)
            return None

        pictures = [each for each in runtime.parallel(read, some) if each is not None]
        if not pictures:
            return Shift((None,) * len(backbone.stages), None, None, 0, 0)
        with progress("Measuring how far from the source", len(pictures), "images") as advance:
            stages = statistics_shift(backbone, np.stack(pictures), advance)
        memo.save({}, {"stages": np.array([np.nan if each is None else each for each in stages])})
    else:
        stages = tuple(None if np.isnan(each) else float(each) for each in known[1]["stages"])
    measured = [each for each in stages if each is not None]
    entropy = None
    if backbone.classifier is not None:
        entropy = answers_entropy(backbone.classifier, features.stages((len(features.own) - 1,), pool[:ANSWERS]))
    classes = 0 if backbone.classifier is None else len(backbone.classifier[1])
    return Shift(stages, float(np.mean(measured)) if measured else None, entropy, classes, len(some))


def statistics_shift(
    backbone: Backbone, pictures: NDArray[np.uint8], advance: Callable[[int], None] = lambda _: None
) -> tuple[float | None, ...]:
    """Per stage, the mean squared Hellinger distance of channel statistics on pictures (N, H, W, 3) uint8 from the running ones;
    `advance` is told of each batch."""
    layers = [
        [
            module
            for module in stage.modules()
            if {"running_mean", "running_var"} <= dict(module.named_buffers(recurse=False)).keys()
        ]
        for stage in backbone.stages
    ]
    if not any(layers):
        return (None,) * len(layers)
    device = next(backbone.parameters()).device
    with _watched([layer for stage in layers for layer in stage]) as seen, torch.inference_mode():
        for start in range(0, len(pictures), _STEP):
            batch = pictures[start : start + _STEP]
            backbone.run(normalize(batch, backbone.input, device), 0, len(backbone.stages))
            advance(len(batch))
    found = []
    for stage in layers:
        apart = [_hellinger(layer, *seen[layer]) for layer in stage if layer in seen]
        found.append(float(np.mean(apart)) if apart else None)
    return tuple(found)


@contextmanager
def _watched(layers: list[nn.Module]) -> Iterator[dict[nn.Module, tuple[Tensor, Tensor]]]:
    """Mean and variance of what goes into each layer, per channel (axis 1) over all pictures that are run meanwhile."""
    sums: dict[nn.Module, tuple[int, Tensor, Tensor]] = {}
    found: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def look(layer: nn.Module, given: tuple[Tensor, ...]) -> None:
        kept = layer.get_buffer("running_mean")
        if kept.ndim != 1 or not given or given[0].ndim < 2 or given[0].shape[1] != len(kept):
            return  # no batch normalisation over axis 1
        values = given[0].detach().float()
        count, total, squares = sums.get(layer, (0, torch.zeros(()), torch.zeros(())))
        more = values.numel() // values.shape[1]
        mean, variance = torch.zeros(2, len(kept), device=values.device)
        # What training replaces running statistics by, at momentum 1: several times as fast as `var_mean` over three axes on a CPU.
        if more > 1:
            functional.batch_norm(values, mean, variance, training=True, momentum=1.0)
        else:
            mean = values.flatten()
        mean, variance = mean.double(), variance.double() * (more - 1) / more  # they keep the unbiased one
        sums[layer] = (count + more, total + more * mean, squares + more * (variance + mean.square()))

    handles = [layer.register_forward_pre_hook(look) for layer in layers]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
    for layer, (count, total, squares) in sums.items():
        mean = total / count
        found[layer] = (mean, (squares / count - mean.square()).clamp(min=0.0))


def _hellinger(layer: nn.Module, mean: Tensor, variance: Tensor) -> float:
    """Mean over channels of the squared Hellinger distance between two normal distributions."""
    kept, width = layer.get_buffer("running_mean").double(), layer.get_buffer("running_var").double()
    here, there = variance.clamp(min=_LEAST), width.clamp(min=_LEAST)
    both = here + there
    overlap = (2 * (here * there).sqrt() / both).sqrt() * torch.exp(-(mean - kept).square() / (4 * both))
    return float((1 - overlap).mean())


def answers_entropy(classifier: tuple[Tensor, Tensor], rows: NDArray[np.float32]) -> float:
    """Mean entropy of a classifier's (K, D) and (K,) answers to features (N, D), as a share of log K."""
    weight, bias = classifier
    logits = torch.from_numpy(rows) @ weight.T + bias
    return float(entr(logits.double().softmax(1).numpy()).sum(1).mean() / np.log(len(bias)))
