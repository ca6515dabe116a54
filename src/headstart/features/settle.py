"""How a backbone runs on this machine and these pictures: decided once, then remembered."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart import runtime
from headstart.backbones.backbone import Backbone
from headstart.data.dataset import Dataset
from headstart.data.images import Transform, load_view
from headstart.errors import BackboneError, MissingExtra
from headstart.features.compiled import WORTH, Gain, compilers, version
from headstart.features.engine import SAMPLE, Engine, Way
from headstart.features.store import Store


def transform_of(backbone: Backbone, mirror: bool = True) -> Transform:
    """The picture transform that the backbone's weights were trained with; `mirror`: whether augmented views may be mirrored."""
    return Transform.of(backbone.input, flip=mirror)


def key_of(backbone: Backbone, stop: int | None, view: int, seed: int, mirror: bool = True) -> dict[str, Any]:
    """What the outputs of `stages[:stop]` depend on beside the pictures and the way that they are run."""
    return {
        "weights": backbone.digest(stop),
        "stop": stop,
        "transform": transform_of(backbone, mirror).key(view, seed),
        "mean": backbone.input.mean,
        "std": backbone.input.std,
    }


def settle(engine: Engine, dataset: Dataset, store: Store, alone: Callable[[], None] = runtime.nothing) -> Way:
    """How the engine runs, decided on pictures that do not depend on the order of the files; what was decided is remembered.

    `alone` is called before speeds are measured: whatever else is going on should stop.

    Raises:
        BackboneError: where the compiler that was named cannot run the backbone.
    """
    if engine.way is None:
        # Who shares a batch moves the last bits, and names and order of files must not.
        first = sorted(range(len(dataset)), key=lambda i: dataset.digests[i])[:SAMPLE]
        spec = {**key_of(engine.backbone, None, 0, 0), **engine.circumstances()}
        here = {"pictures": [dataset.digests[i] for i in first], "magnitude": len(dataset).bit_length()}
        memo = store.artifact("engine", {**spec, **here})
        known = memo.load()
        if known is None:
            transform = transform_of(engine.backbone)
            pictures = np.stack([load_view(dataset.images, i, transform) for i in first])
            engine.settle(pictures)
            if engine.runner == "auto":
                _hasten(engine, pictures, store, spec, len(dataset), alone)
            assert engine.way is not None
            memo.save(asdict(engine.way), {})
        else:
            engine.adopt(Way(**known[0]))
    assert engine.way is not None
    return engine.way


def _hasten(
    engine: Engine,
    pictures: NDArray[np.uint8],
    store: Store,
    spec: Mapping[str, Any],
    count: int,
    alone: Callable[[], None],
) -> None:
    """Let a compiler run the stages, where `count` pictures earn the compilation back. What it gains is measured once per machine,
    backbone and batch size."""
    before = engine.way
    assert before is not None
    for runner in compilers(engine.device):
        about = {
            "way": str(before),
            "compiler": [runner, version(runner)],
            "batch": engine.batch,
            "cores": runtime.cpu_count(),
        }
        memo = store.artifact("gain", {**spec, **about})
        stored = memo.load()
        gain, eager = None if stored is None else Gain(**stored[0]), 0.0
        if gain is None:
            alone()
            eager = engine.seconds(pictures)
        if not (gain.pays(count) if gain else eager * count >= WORTH[runner]):
            continue
        try:
            building = engine.hasten(runner, pictures)
            if gain is None:
                gain = Gain(eager, engine.seconds(pictures), building)
                memo.save(asdict(gain), {})
        except MissingExtra:  # it was not asked for; that these pictures run without it is remembered
            engine.adopt(before)
            continue
        except BackboneError:  # nor need other pictures pay for trying it again
            engine.adopt(before)
            if gain is None:
                memo.save(asdict(Gain(eager, eager, 0.0)), {})
            continue
        if gain.compiled < gain.eager:  # it is made, so that it need not be earned back any more
            return
        engine.adopt(before)
