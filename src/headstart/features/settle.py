"""How a backbone runs on this machine and these pictures: decided once, then remembered."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from headstart import runtime
from headstart.backbones.backbone import Backbone
from headstart.data.dataset import Dataset, Images
from headstart.data.images import Transform, load_view
from headstart.errors import BackboneError, MissingExtra
from headstart.features.compiled import WORTH, WORTH_ROUNDED, Gain, compilers, version
from headstart.features.engine import AGREES, CLEARLY, SAMPLE, TURNS, Engine, Pictures
from headstart.features.precision import agreement, synchronize
from headstart.features.store import Artifact, Store
from headstart.features.way import Way

DECODERS = ("cuda",)  # devices that are tried as decoders of JPEG files
DECODED = 64  # pictures that decide whether they are used
PACED = 1.0  # seconds of frozen forward passes from which bfloat16 has to prove that it is not slower than float32


def transform_of(backbone: Backbone, mirror: bool = True) -> Transform:
    """The picture transform that the backbone's weights were trained with; `mirror`: whether augmented views may be mirrored."""
    return Transform.of(backbone.input, flip=mirror)


def key_of(
    backbone: Backbone, stop: int | None, view: int, seed: int, mirror: bool = True, weights: str | None = None
) -> dict[str, Any]:
    """What the outputs of `stages[:stop]` depend on beside the pictures and the way that they are run; `weights` is their digest,
    where that is known."""
    return {
        "weights": weights or backbone.digest(stop),
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
    weights = engine.look()
    if engine.way is None:
        # Who shares a batch moves the last bits, and names and order of files must not.
        order = sorted(range(len(dataset)), key=lambda i: dataset.digests[i])
        first = order[:SAMPLE]
        spec = {**key_of(engine.backbone, None, 0, 0, weights=weights), **engine.circumstances()}
        here = {
            "pictures": [dataset.digests[i] for i in first],
            "magnitude": len(dataset).bit_length(),
            "paced": [TURNS, CLEARLY, PACED],
        }
        memo = store.artifact("engine", {**spec, **here})
        known = memo.load()
        if known is None:
            transform = transform_of(engine.backbone)
            pictures = np.stack(list(runtime.parallel(lambda i: load_view(dataset.images, i, transform), first)))
            engine.settle(pictures)
            clock = _Clock(engine, pictures, store, spec, len(dataset), alone)
            if clock.bfloat16_loses():
                engine.use_float32(pictures)
            if _decodes(engine, dataset.images, order[:DECODED], alone):
                assert engine.way is not None
                engine.adopt(replace(engine.way, decodes=True))
            if engine.runner == "auto":
                clock.hasten()
            assert engine.way is not None
            memo.save(asdict(engine.way), {})
        else:
            engine.adopt(Way(**known[0]))
    assert engine.way is not None
    return engine.way


def there() -> Callable[[Images, Sequence[int], Transform, torch.device], torch.Tensor] | None:
    """What decodes on a device (`on_device.load_there`); None where torchvision no longer decodes."""
    try:
        from headstart.features.on_device import load_there
    except ImportError:
        return None
    return load_there


def _decodes(engine: Engine, images: Images, indices: Sequence[int], alone: Callable[[], None]) -> bool:
    """Whether the device decodes JPEG files: where that is faster than Pillow on all cores, and the features of every stage agree."""
    on_device = there() if engine.device.type in DECODERS else None
    if on_device is None:
        return False
    transform, widths = transform_of(engine.backbone), list(engine.backbone.widths)

    def pooled(pictures: Pictures) -> Sequence[torch.Tensor]:
        return torch.split(torch.from_numpy(engine.pooled(pictures)), widths, dim=1)

    alone()
    for _ in range(2):  # the first round pays for what is set up once
        began = time.perf_counter()
        ours = list(runtime.parallel(lambda i: load_view(images, i, transform), indices))
        between = time.perf_counter()
        theirs = on_device(images, indices, transform, engine.device)
        synchronize(engine.device)
        ended = time.perf_counter()
    return ended - between < between - began and agreement(pooled(np.stack(ours)), pooled(theirs)) >= AGREES


@dataclass(frozen=True, eq=False)
class _Clock:
    """What speeds are measured with: an engine, pictures (N, H, W, 3) such as the `count` that it is to run, the store that remembers
    them and a part of their key, and what makes sure that nothing else goes on."""

    engine: Engine
    pictures: NDArray[np.uint8]
    store: Store
    spec: Mapping[str, Any]
    count: int
    alone: Callable[[], None]

    def _memo(self, kind: str, **about: object) -> Artifact:
        """Remembered per machine, backbone and batch size."""
        here = {"batch": self.engine.batch, "cores": runtime.cpu_count()}
        return self.store.artifact(kind, {**self.spec, **about, **here})

    def bfloat16_loses(self) -> bool:
        """Whether bfloat16, which nobody asked for, is clearly slower here than float32. That is measured where the pictures take long
        enough to notice, and once: the same pictures keep the same features on a busy day."""
        engine = self.engine
        assert engine.way is not None
        if engine.wanted != "auto" or engine.way.precision == "float32" or engine.way.runner != "eager":
            return False
        memo = self._memo("pace", way=str(engine.way))
        known = memo.load()
        if known is None:
            self.alone()
            laps = engine.pace(self.pictures, self.count, PACED)
            if laps is None:
                return False
            known = {"rounded": laps[0], "exact": laps[1]}, {}
            memo.save(*known)
        laps = known[0]["rounded"], known[0]["exact"]
        return all(rounded >= CLEARLY * exact for rounded, exact in zip(*laps, strict=True))

    def hasten(self) -> None:
        """Let a compiler run the stages, where the pictures earn the compilation back. What it gains is measured once."""
        engine, before = self.engine, self.engine.way
        assert before is not None
        worth = WORTH_ROUNDED if before.precision == "bfloat16" else WORTH
        for runner in compilers(engine.device):
            memo = self._memo("gain", way=before.before_compiling, compiler=[runner, version(runner)])
            stored = memo.load()
            gain, eager = None if stored is None else Gain(**stored[0]), 0.0
            if gain is None:
                self.alone()
                eager = engine.seconds(self.pictures)
            if not (gain.pays(self.count) if gain else eager * self.count >= worth[runner]):
                continue
            try:
                building = engine.hasten(runner, self.pictures)
                if gain is None:
                    gain = Gain(eager, engine.seconds(self.pictures), building)
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
