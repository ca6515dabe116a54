"""Run a frozen stack as fast as this machine can, and no less exactly than its users may rely on."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headstart import runtime
from headstart.backbones.backbone import Activation, Backbone, InputSpec
from headstart.features.folded import can_fold, fold

Precision = Literal["float32", "bfloat16"]
COSINE = 0.999  # the least agreement with float32, per picture, that a faster precision must keep
AGREES = 0.9995  # what it must reach on the sample, so that other pictures keep that as well
CHEAP = (
    0.1  # leading stages with so small a share of the forward pass stay in float32 unasked: they do most of the harm
)
SAMPLE = 8  # pictures
# Pictures that a worker runs at a time. More do not fit a processor's caches, and are slower (EfficientNet-Lite0, two workers). What
# a GPU likes best has not been measured; it likes more.
BATCH, BATCH_CUDA = 4, 64
SAME = 1 - 1e-5  # and at which a folded copy in float32 is, which differs by rounding only


def normalize(pictures: NDArray[np.uint8] | Tensor, spec: InputSpec, device: torch.device) -> Tensor:
    """uint8 pictures (N, H, W, 3) to the float32 (N, 3, H, W), channels_last, that the weights were trained with."""
    pixels = torch.as_tensor(pictures).to(device, non_blocking=True)
    scale = torch.tensor([255.0 * s for s in spec.std], device=device)
    shift = torch.tensor([m / s for m, s in zip(spec.mean, spec.std, strict=True)], device=device)
    # A row of pixels at a time: a last axis of three numbers is slow. The permuted view of an (N, H, W, 3) tensor is channels_last.
    rows = pixels.flatten(2).to(torch.float32).div_(scale.repeat(pixels.shape[2])).sub_(shift.repeat(pixels.shape[2]))
    return rows.view(pixels.shape).permute(0, 3, 1, 2)


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether this device multiplies in bfloat16 natively (AVX512-BF16, AMX; CUDA from Ampere on)."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        flags = _cpu_flags()
        return "avx512_bf16" in flags or "amx_bf16" in flags
    return False


def synchronize(device: torch.device) -> None:
    """Wait for what a GPU still has to do, before a clock is read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """A context in which torch computes at a precision."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def _cpu_flags() -> frozenset[str]:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:  # noqa: PTH123
            for line in file:
                if line.startswith("flags"):
                    return frozenset(line.split(":", 1)[1].split())
    except OSError:
        return frozenset()  # not Linux: float32 is the safe answer
    return frozenset()


@dataclass(frozen=True)
class Way:
    """How a backbone is run: `stages[:exact]` in float32, the others at `precision`; whether in folded copies; and the least
    cosine with plain float32, per picture, of the pooled features (None where nothing was compared)."""

    precision: Precision
    exact: int = 0
    folded: bool = False
    agreement: float | None = None

    def __str__(self) -> str:
        after = f" after {self.exact}" if self.precision != "float32" and self.exact else ""
        return f"{self.precision}{after}{' folded' * self.folded}"


PLAIN = Way("float32")


@dataclass(frozen=True)
class _Settled:
    """The way that was settled on, the networks that run it (exact stages, the others; None: not made yet), and the state of the
    weights that they were made from."""

    way: Way
    nets: tuple[Backbone, Backbone] | None
    state: tuple[int, ...]


@final
class Engine:
    """A backbone on a device in some way, behind NumPy in and NumPy out.

    `precision` "auto" takes bfloat16 where the device multiplies in it natively, but for as many leading stages as it takes for
    the pooled features of the first batch to agree with float32 (see `AGREES`): rounded weights of the first few stages, on which
    all others build, do nearly all of the harm. The choice depends on no clock, so it repeats. A precision that is named is taken
    as it is, with `exact` leading stages in float32. With `folded`, a CPU runs copies whose norms are folded into their
    convolutions, if those agree as well. The backbone is taken to the device, to channels_last and to evaluation mode; threads
    may share the engine.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        precision: Precision | Literal["auto"] = "auto",
        exact: int = 0,
        device: torch.device | None = None,
        folded: bool = True,
    ) -> None:
        self.device = runtime.device() if device is None else device
        self.backbone = backbone
        backbone.eval()
        backbone.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._wanted: Precision | Literal["auto"] = precision
        self._exact = exact
        self._now: _Settled | None = None
        self._fold = folded and can_fold(self.device)
        self._lock = threading.Lock()

    @property
    def batch(self) -> int:
        """Pictures that are run at a time."""
        return BATCH_CUDA if self.device.type == "cuda" else BATCH

    @property
    def way(self) -> Way | None:
        """How the backbone is run, with the weights that it has now; None where that is not settled."""
        now = self._now
        return None if now is None or now.state != self._state() else now.way

    @property
    def settled(self) -> Precision | None:
        """The precision in use, or None where no picture has been run yet."""
        return self._now.way.precision if self._now else None if self._wanted == "auto" else self._wanted

    @property
    def exact(self) -> int:
        """How many leading stages run in float32 whatever the precision."""
        return self._now.way.exact if self._now else self._exact

    def circumstances(self) -> dict[str, Any]:
        """All that the choice depends on beside weights and pictures: what was asked for, machine and torch."""
        return {
            "wanted": self._wanted,
            "exact": self._exact,
            "fold": self._fold,
            "device": str(self.device),
            "bfloat16": has_fast_bfloat16(self.device),
            "machine": runtime.environment()["processor"],
            "torch": torch.__version__,
        }

    def adopt(self, way: Way) -> None:
        """Run the backbone, with the weights that it has now, in a way that was settled on before: nothing is compared again."""
        self._now = _Settled(way, None, self._state())

    def settle(self, pictures: NDArray[np.uint8]) -> None:
        """Decide how the backbone is run, on the first of these pictures (N, H, W, 3), unless that is decided."""
        self._ready(pictures)

    def _ready(self, pictures: NDArray[np.uint8]) -> _Settled:
        now = self._now
        if now is None or now.nets is None or now.state != self._state():
            with self._lock:
                if self._now is None or self._now.state != self._state():
                    self._now = self._compared(pictures[:SAMPLE])
                elif self._now.nets is None:
                    self._now = replace(self._now, nets=self._nets(self._now.way))
                now = self._now
        return now

    def _nets(self, way: Way) -> tuple[Backbone, Backbone]:
        """The networks that run the exact stages and the others."""
        dtypes = dict.fromkeys((torch.float32, getattr(torch, way.precision)))
        copies = fold(self.backbone, *dtypes) if way.folded else ()
        return (copies[0], copies[-1]) if copies else (self.backbone, self.backbone)

    def _compared(self, sample: NDArray[np.uint8]) -> _Settled:
        """The first way that agrees with plain float32 on the sample, the fastest first."""
        state, native = self._state(), has_fast_bfloat16(self.device)
        plain = _Settled(PLAIN, (self.backbone, self.backbone), state)
        # oneDNN refuses bfloat16 where the processor lacks it; torch's own kernels only take longer.
        first: Precision = (
            "bfloat16" if self._wanted == "bfloat16" or (self._wanted == "auto" and native) else "float32"
        )
        folds = self._fold and (native or first == "float32")
        nets = self._nets(Way(first, folded=folds))
        folds = nets[1] is not self.backbone
        ways: list[tuple[Way, float]] = []
        if first == "bfloat16" and self._wanted == "auto":
            done = np.cumsum(self.backbone.flops) / max(1, sum(self.backbone.flops))
            least, most = int((done <= CHEAP).sum()), len(self.backbone.stages) // 2
            ways += [(Way(first, exact, folds), AGREES) for exact in range(least, most + 1)]
        elif first == "bfloat16" and folds:
            ways.append((Way(first, self._exact, True), COSINE))
        if folds and self._wanted != "bfloat16":
            ways.append((Way("float32", folded=True), SAME))
        truth = self._features(plain, sample) if ways else torch.empty(0)
        for way, enough in ways:
            tried = _Settled(way, nets if way.precision == first else (nets[0], nets[0]), state)
            cosines = torch.nn.functional.cosine_similarity(truth, self._features(tried, sample), dim=1)
            if float(cosines.min()) >= enough:
                return replace(tried, way=replace(way, agreement=float(cosines.min())))
        return replace(plain, way=Way("bfloat16", self._exact)) if self._wanted == "bfloat16" else plain

    def alike(self, backbone: Backbone) -> Engine:
        """An engine for other weights of the same network, at the precision settled on here."""
        return Engine(backbone, precision=self.settled or "float32", exact=self.exact, device=self.device)

    def _state(self) -> tuple[int, ...]:
        """Changes with every change of the weights."""
        return tuple(tensor._version for tensor in (*self.backbone.parameters(), *self.backbone.buffers()))

    def _parts(self, now: _Settled, start: int, stop: int) -> Iterator[tuple[Backbone, int, int]]:
        """The networks that run `stages[start:stop]`, and which of these each runs, under autocast where it is wanted."""
        assert now.nets is not None
        middle = min(max(start, now.way.exact), stop)
        if start < middle:
            yield now.nets[0], start, middle
        if middle < stop:
            with autocast(self.device, now.way.precision):
                yield now.nets[1], middle, stop

    def _run(
        self, now: _Settled, activation: Activation, start: int, stop: int
    ) -> tuple[Activation, tuple[Tensor, ...]]:
        """Run `stages[start:stop]`, each at its precision; the last output, and each output pooled."""
        pooled: tuple[Tensor, ...] = ()
        for net, first, end in self._parts(now, start, stop):
            activation, more = net.run_and_pool(activation, first, end)
            pooled += more
        return activation, pooled

    def pooled(self, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Pooled outputs of every stage, side by side: (N, sum of widths) float32."""
        now = self._ready(pictures)
        with torch.inference_mode():
            images = normalize(pictures, self.backbone.input, self.device)
            stages = self._run(now, images, 0, len(self.backbone.stages))[1]
            return torch.cat(stages, dim=1).float().cpu().numpy()

    def activations(self, pictures: NDArray[np.uint8], cut: int) -> tuple[Tensor, NDArray[np.float32]]:
        """Activation at the cut, flattened (N, L) in the running precision, and the pooled outputs of `stages[:cut]`."""
        now = self._ready(pictures)
        with torch.inference_mode():
            images = normalize(pictures, self.backbone.input, self.device)
            activation, pooled = self._run(now, images, 0, cut)
            beside = torch.cat(pooled, dim=1).float().cpu().numpy()
            # An exact stage, or an operation that promotes, may have left more digits.
            return self.backbone.flatten(activation).to(getattr(torch, now.way.precision)).cpu(), beside

    def stage_seconds(self, count: int = 8) -> list[float]:
        """Seconds per picture and stage of the frozen forward pass as it runs here."""
        height, width = self.backbone.input.size
        pictures = np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)
        return self._timed(pictures, self._ready(pictures))

    def _timed(self, pictures: NDArray[np.uint8], now: _Settled) -> list[float]:
        best = [float("inf")] * len(self.backbone.stages)
        with torch.inference_mode():
            for _ in range(3):  # the first pass pays for what is set up once
                activation: Activation = normalize(pictures, self.backbone.input, self.device)
                for place in range(len(best)):
                    synchronize(self.device)
                    began = time.perf_counter()
                    for net, first, end in self._parts(now, place, place + 1):
                        activation = net.run(activation, first, end)
                    synchronize(self.device)
                    best[place] = min(best[place], (time.perf_counter() - began) / len(pictures))
        return best

    def _features(self, now: _Settled, pictures: NDArray[np.uint8]) -> Tensor:
        with torch.inference_mode():
            activation: Activation = normalize(pictures, self.backbone.input, self.device)
            for net, first, end in self._parts(now, 0, len(self.backbone.stages)):
                activation = net.run(activation, first, end)
            return self.backbone.pool(len(self.backbone.stages) - 1, activation)


def as_activation(backbone: Backbone, rows: NDArray[Any], cut: int, device: torch.device) -> Activation:
    """Stored rows (N, L), float32 or bfloat16 kept as uint16, to the float32 activation that enters stage `cut`."""
    flat = torch.from_numpy(rows)
    if rows.dtype == np.uint16:
        flat = flat.view(torch.bfloat16)
    return backbone.unflatten(cut, flat.to(device).float())
