"""How a backbone runs on this machine and these pictures: decided once, then remembered."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from headstart import runtime
from headstart.backbones.backbone import Backbone
from headstart.data.dataset import Dataset, Images
from headstart.data.images import Transform, load_view
from headstart.errors import BackboneError
from headstart.features.compiled import WORTH, Gain, compilers, version
from headstart.features.engine import AGREES, SAMPLE, Engine, Way
from headstart.features.precision import synchronize
from headstart.features.store import Store

DECODERS = ("cuda",)  # devices that may decode JPEG files themselves
DECODED = 64  # pictures that decide whether they do


def transform_of(backbone: Backbone) -> Transform:
    """The picture transform that the backbone's weights were trained with."""
    return Transform.of(backbone.input)


def key_of(backbone: Backbone, stop: int | None, view: int, seed: int) -> dict[str, Any]:
    """What the outputs of `stages[:stop]` depend on beside the pictures and the way that they are run."""
    return {
        "weights": backbone.digest(stop),
        "stop": stop,
        "transform": transform_of(backbone).key(view, seed),
        "mean": backbone.input.mean,
        "std": backbone.input.std,
    }


def settle(engine: Engine, dataset: Dataset, store: Store) -> str:
    """How the engine runs, decided on pictures that do not depend on the order of the files; what was decided is remembered."""
    if engine.way is None:
        first = _first(dataset)
        memo = store.artifact(
            "engine",
            {
                **key_of(engine.backbone, None, 0, 0),
                **engine.circumstances(),
                "pictures": [dataset.digests[i] for i in first],
            },
        )
        known = memo.load()
        if known is None:
            engine.settle(_loaded(dataset, first, engine.backbone))
            assert engine.way is not None
            if engine.device.type in DECODERS and _decodes(engine, dataset, first):
                engine.adopt(replace(engine.way, decodes=True))
            memo.save(asdict(engine.way), {})
        else:
            engine.adopt(Way(**known[0]))
    return str(engine.way)


def hasten(engine: Engine, dataset: Dataset, store: Store, count: int) -> None:
    """Let a compiler run the frozen stages, where `count` pictures earn the compilation back and the choice is left to the engine.

    What is gained is measured once per machine, backbone and batch size; that it agrees, on every data set.
    """
    if engine.runner != "auto" or engine.way is None or engine.way.runner != "eager":
        return
    first = _first(dataset)
    for runner in compilers(engine.device):
        spec = {
            "weights": engine.backbone.digest(),
            **engine.circumstances(),
            "way": str(engine.way),
            "compiler": [runner, version(runner)],
            "batch": engine.batch,
            "cores": runtime.cpu_count(),
        }
        memo = store.artifact("gain", spec)
        refusal = store.artifact("refused", {**spec, "pictures": [dataset.digests[i] for i in first]})
        stored = memo.load()
        if refusal.load() is not None or (stored is not None and not Gain(**stored[0]).pays(count)):
            continue
        pictures = _loaded(dataset, first, engine.backbone)
        before = engine.way
        eager = engine.seconds(pictures) if stored is None else 0.0
        if stored is None and eager * count < WORTH[runner]:
            continue
        try:
            building = engine.hasten(runner, pictures)
        except BackboneError as error:
            refusal.save({"reason": str(error)}, {})
            continue
        if stored is None:
            gain = Gain(eager, engine.seconds(pictures), building)
            memo.save(asdict(gain), {})
            if gain.compiled >= gain.eager:  # it is made, so that it need not be earned back any more
                engine.adopt(before)
                continue
        return


def there() -> Callable[[Images, Sequence[int], Transform, torch.device], torch.Tensor] | None:
    """What decodes on a device; None where torchvision decodes no pictures."""
    try:
        from headstart.features.on_device import load_there
    except ImportError:
        return None
    return load_there


def _decodes(engine: Engine, dataset: Dataset, first: Sequence[int]) -> bool:
    """Whether JPEG files are decoded on the device: where that is faster than all cores, and the features agree."""
    load_there = there()
    if load_there is None:
        return False
    transform, sample = transform_of(engine.backbone), list(range(min(DECODED, len(dataset))))
    seconds = {}
    for here in (False, True, False, True):  # the first of each pays for what is set up once
        began = time.perf_counter()
        if here:
            deque(runtime.parallel(lambda i: load_view(dataset.images, i, transform), sample), maxlen=0)
        else:
            load_there(dataset.images, sample, transform, engine.device)
            synchronize(engine.device)
        seconds[here] = time.perf_counter() - began
    if seconds[False] >= seconds[True]:
        return False
    width = engine.backbone.widths[-1]
    truth = engine.pooled(_loaded(dataset, first, engine.backbone))[:, -width:]
    found = engine.pooled(load_there(dataset.images, first, transform, engine.device))[:, -width:]
    lengths = np.linalg.norm(truth, axis=1) * np.linalg.norm(found, axis=1)
    return bool(((truth * found).sum(1) >= AGREES * lengths).all())


def _first(dataset: Dataset) -> list[int]:
    """Pictures that a choice is made on; they do not depend on names and order of the files."""
    return sorted(range(len(dataset)), key=lambda i: dataset.digests[i])[:SAMPLE]


def _loaded(dataset: Dataset, indices: Sequence[int], backbone: Backbone) -> NDArray[np.uint8]:
    """Clean views (N, H, W, 3) uint8."""
    transform = transform_of(backbone)
    return np.stack([load_view(dataset.images, i, transform) for i in indices])
