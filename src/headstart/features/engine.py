"""Run a frozen stack as fast as this machine can, and no less exactly than its users may rely on."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
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
COSINE = 0.999  # the least agreement with float32, per picture, at which a faster precision is taken
SAME = 1 - 1e-5  # and at which a folded copy in float32 is, which differs by rounding only


def normalize(pictures: NDArray[np.uint8] | Tensor, spec: InputSpec, device: torch.device) -> Tensor:
    """uint8 pictures (N, H, W, 3) to the float32 (N, 3, H, W), channels_last, that the weights were trained with."""
    pixels = torch.as_tensor(pictures).to(device, non_blocking=True)
    scale = torch.tensor([255.0 * s for s in spec.std], device=device)
    shift = torch.tensor([m / s for m, s in zip(spec.mean, spec.std, strict=True)], device=device)
    # Already channels_last in memory: the permuted view of an (N, H, W, 3) tensor is exactly that layout.
    return (pixels.to(torch.float32) / scale - shift).permute(0, 3, 1, 2)


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether this device multiplies in bfloat16 natively (AVX512-BF16, AMX; CUDA from Ampere on)."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        flags = _cpu_flags()
        return "avx512_bf16" in flags or "amx_bf16" in flags
    return False


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
class _Way:
    """One way to run a backbone: a precision, the network that runs (None: not made yet), whether that is a folded copy, the
    state of the weights that it was made from, and how well it agrees with plain float32."""

    precision: Precision
    net: Backbone | None
    folded: bool
    state: tuple[int, ...]
    agreement: float | None = None


def _net(way: _Way) -> Backbone:
    assert way.net is not None
    return way.net


@final
class Engine:
    """A backbone on a device at a precision, behind NumPy in and NumPy out.

    `precision` "auto" takes bfloat16 where the device multiplies in it natively *and* the pooled features of the first
    batch keep a cosine of at least 0.999 with float32 for every picture; the choice depends on no clock, so it repeats.
    With `folded`, a CPU runs a copy whose norms are folded into its convolutions, if that copy agrees as well.
    The backbone is taken to the device, to channels_last and to evaluation mode; threads may share the engine.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        precision: Precision | Literal["auto"] = "auto",
        device: torch.device | None = None,
        folded: bool = True,
    ) -> None:
        self.device = runtime.device() if device is None else device
        self.backbone = backbone
        backbone.eval()
        backbone.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._wanted: Precision | Literal["auto"] = precision
        self._way: _Way | None = None
        self._fold = folded and can_fold(self.device)
        self._lock = threading.Lock()

    @property
    def settled(self) -> Precision | None:
        """The precision in use, or None where no picture has been run yet."""
        return self._way.precision if self._way else None if self._wanted == "auto" else self._wanted

    @property
    def agreement(self) -> float | None:
        """The least cosine with plain float32, per picture, of what was settled on; None where nothing was compared."""
        return self._way.agreement if self._way else None

    @property
    def folded(self) -> bool:
        """Whether a folded copy was settled on."""
        return self._way is not None and self._way.folded

    def circumstances(self) -> dict[str, Any]:
        """All that the choice depends on beside weights and pictures: what was asked for, machine and torch."""
        return {
            "wanted": self._wanted,
            "fold": self._fold,
            "device": str(self.device),
            "bfloat16": has_fast_bfloat16(self.device),
            "machine": runtime.environment()["processor"],
            "torch": torch.__version__,
        }

    @property
    def how(self) -> str | None:
        """How the backbone is run, in words that key stored results; None where that is not settled."""
        way = self._way
        return None if way is None or way.state != self._state() else f"{way.precision}{' folded' * way.folded}"

    def adopt(self, precision: Precision, folded: bool, agreement: float | None) -> None:
        """Run the backbone, with the weights that it has now, in a way that was settled on before: nothing is compared again."""
        self._way = _Way(precision, None if folded else self.backbone, folded, self._state(), agreement)

    def settle(self, pictures: NDArray[np.uint8]) -> None:
        """Decide how the backbone is run, on the first of these pictures (N, H, W, 3), unless that is decided."""
        self._settled(pictures)

    def _settled(self, pictures: NDArray[np.uint8]) -> _Way:
        way = self._way
        if way is None or way.net is None or way.state != self._state():
            with self._lock:
                if self._way is None or self._way.state != self._state():
                    self._way = self._compared(pictures[:8])
                elif self._way.net is None:
                    self._way = replace(self._way, net=fold(self.backbone, getattr(torch, self._way.precision)))
                way = self._way
        return way

    def _compared(self, sample: NDArray[np.uint8]) -> _Way:
        """The first way that agrees with plain float32 on the sample, the fastest first."""
        state = self._state()
        plain = _Way("float32", self.backbone, False, state)
        wanted: tuple[Precision, ...] = ("float32",) if self._wanted == "auto" else (self._wanted,)
        if self._wanted == "auto" and has_fast_bfloat16(self.device):
            wanted = ("bfloat16", "float32")
        ways = []
        for precision in wanted:
            # oneDNN refuses bfloat16 where the processor lacks it; torch's own kernels only take longer.
            foldable = self._fold and (precision == "float32" or has_fast_bfloat16(self.device))
            copied = fold(self.backbone, getattr(torch, precision)) if foldable else None
            ways += [_Way(precision, copied, True, state)] if copied is not None else []
            ways += [_Way(precision, self.backbone, False, state)]
        exact = self._features(plain, sample) if len(ways) > 1 else torch.empty(0)
        for way in ways[:-1]:
            agreement = float(torch.nn.functional.cosine_similarity(exact, self._features(way, sample), dim=1).min())
            if agreement >= (COSINE if way.precision == "bfloat16" else SAME):
                return replace(way, agreement=agreement)
        return ways[-1]  # plain float32, or the precision that was asked for, whatever it costs

    def _state(self) -> tuple[int, ...]:
        """Changes with every change of the weights."""
        return tuple(tensor._version for tensor in (*self.backbone.parameters(), *self.backbone.buffers()))

    def pooled(self, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Pooled outputs of every stage, side by side: (N, sum of widths) float32."""
        way = self._settled(pictures)
        with self._ready(way.precision):
            stages = _net(way).pooled(normalize(pictures, self.backbone.input, self.device))
            return torch.cat(stages, dim=1).float().cpu().numpy()

    def activations(self, pictures: NDArray[np.uint8], cut: int) -> tuple[Tensor, NDArray[np.float32]]:
        """Activation at the cut, flattened (N, L) in the running precision, and the pooled outputs of `stages[:cut]`."""
        way = self._settled(pictures)
        with self._ready(way.precision):
            images = normalize(pictures, self.backbone.input, self.device)
            activation, pooled = _net(way).run_and_pool(images, 0, cut)
            beside = torch.cat(pooled, dim=1).float().cpu().numpy()
            return self.backbone.flatten(activation).cpu(), beside

    def stage_seconds(self, count: int = 8) -> tuple[list[float], list[float]]:
        """Seconds per picture and stage: of the frozen forward pass as it runs here, and of a float32 training step.

        A training step is taken as three forward passes (forward, and the gradients of inputs and of weights).
        """
        height, width = self.backbone.input.size
        pictures = np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)
        frozen = self._timed(pictures, self._settled(pictures))
        plain = self._timed(pictures, _Way("float32", self.backbone, False, self._state()))
        return frozen, [3.0 * seconds for seconds in plain]

    def _timed(self, pictures: NDArray[np.uint8], way: _Way) -> list[float]:
        best = [float("inf")] * len(self.backbone.stages)
        with self._ready(way.precision):
            for _ in range(3):  # the first pass pays for what is set up once
                activation: Activation = normalize(pictures, self.backbone.input, self.device)
                for place in range(len(best)):
                    self._synchronize()
                    began = time.perf_counter()
                    activation = _net(way).run(activation, place, place + 1)
                    self._synchronize()
                    best[place] = min(best[place], (time.perf_counter() - began) / len(pictures))
        return best

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _features(self, way: _Way, pictures: NDArray[np.uint8]) -> Tensor:
        with self._ready(way.precision):
            features: Tensor = _net(way)(normalize(pictures, self.backbone.input, self.device))
            return features.float()

    @contextmanager
    def _ready(self, precision: Precision) -> Iterator[None]:
        """No autograd, and autocast where it is wanted."""
        with torch.inference_mode(), autocast(self.device, precision):
            yield


def as_activation(backbone: Backbone, rows: NDArray[Any], cut: int, device: torch.device) -> Activation:
    """Stored rows (N, L), float32 or bfloat16 kept as uint16, to the float32 activation that enters stage `cut`."""
    flat = torch.from_numpy(rows)
    if rows.dtype == np.uint16:
        flat = flat.view(torch.bfloat16)
    return backbone.unflatten(cut, flat.to(device).float())
