"""Run a frozen stack as fast as this machine can, and no less exactly than its users may rely on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headstart import runtime
from headstart.backbones.backbone import Activation, Backbone, InputSpec

Precision = Literal["float32", "bfloat16"]
COSINE = 0.999  # the least agreement with float32, per picture, at which a faster precision is taken


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


def _cpu_flags() -> frozenset[str]:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:  # noqa: PTH123
            for line in file:
                if line.startswith("flags"):
                    return frozenset(line.split(":", 1)[1].split())
    except OSError:
        return frozenset()  # not Linux: float32 is the safe answer
    return frozenset()


@final
class Engine:
    """A backbone on a device at a precision, behind NumPy in and NumPy out.

    `precision` "auto" takes bfloat16 where the device multiplies in it natively *and* the pooled features of the first
    batch keep a cosine of at least 0.999 with float32 for every picture; the choice depends on no clock, so it repeats.
    The backbone is taken to the device, to channels_last and to evaluation mode; once the precision is settled, threads may
    share the engine.
    """

    def __init__(
        self, backbone: Backbone, *, precision: Precision | Literal["auto"] = "auto", device: torch.device | None = None
    ) -> None:
        self.device = runtime.device() if device is None else device
        self.backbone = backbone
        backbone.eval()
        backbone.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._wanted: Precision | Literal["auto"] = precision
        self._precision: Precision | None = None if precision == "auto" else precision
        self.agreement: float | None = None

    @property
    def settled(self) -> Precision | None:
        """The precision in use, or None where no picture has been run yet."""
        return self._precision

    def precision(self, pictures: NDArray[np.uint8]) -> Precision:
        """The precision in use; settled on these pictures (N, H, W, 3) where it was not before."""
        if self._precision is None:
            self._precision = "float32"
            if has_fast_bfloat16(self.device):
                sample = pictures[:8]
                with self._ready("float32"):
                    exact = self._features(sample)
                with self._ready("bfloat16"):
                    fast = self._features(sample)
                self.agreement = float(torch.nn.functional.cosine_similarity(exact, fast, dim=1).min())
                if self.agreement >= COSINE:
                    self._precision = "bfloat16"
        return self._precision

    def pooled(self, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Pooled outputs of every stage, side by side: (N, sum of widths) float32."""
        with self._ready(self.precision(pictures)):
            stages = self.backbone.pooled(normalize(pictures, self.backbone.input, self.device))
            return torch.cat(stages, dim=1).float().cpu().numpy()

    def activations(self, pictures: NDArray[np.uint8], cut: int) -> tuple[Tensor, NDArray[np.float32]]:
        """Activation at the cut, flattened (N, L) in the running precision, and the pooled outputs of `stages[:cut]`."""
        with self._ready(self.precision(pictures)):
            images = normalize(pictures, self.backbone.input, self.device)
            activation, pooled = self.backbone.run_and_pool(images, 0, cut)
            beside = torch.cat(pooled, dim=1).float().cpu().numpy()
            return self.backbone.flatten(activation).cpu(), beside

    def stage_seconds(self, count: int = 16) -> tuple[list[float], list[float]]:
        """Seconds per picture and stage: of the frozen forward pass as it runs here, and of a float32 training step.

        A training step is taken as three forward passes (forward, and the gradients of inputs and of weights).
        """
        height, width = self.backbone.input.size
        pictures = np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)
        frozen = self._timed(pictures, self.precision(pictures))
        return frozen, [3.0 * seconds for seconds in self._timed(pictures, "float32")]

    def _timed(self, pictures: NDArray[np.uint8], precision: Precision) -> list[float]:
        best = [float("inf")] * len(self.backbone.stages)
        with self._ready(precision):
            for _ in range(3):  # the first pass pays for what is set up once
                activation: Activation = normalize(pictures, self.backbone.input, self.device)
                for place in range(len(best)):
                    self._synchronize()
                    began = time.perf_counter()
                    activation = self.backbone.run(activation, place, place + 1)
                    self._synchronize()
                    best[place] = min(best[place], (time.perf_counter() - began) / len(pictures))
        return best

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _features(self, pictures: NDArray[np.uint8]) -> Tensor:
        features: Tensor = self.backbone(normalize(pictures, self.backbone.input, self.device))
        return features.float()

    @contextmanager
    def _ready(self, precision: Precision) -> Iterator[None]:
        """No autograd, and autocast where it is wanted."""
        with (
            torch.inference_mode(),
            torch.autocast(self.device.type, torch.bfloat16, enabled=precision == "bfloat16"),
        ):
            yield


def as_activation(backbone: Backbone, rows: NDArray[Any], cut: int, device: torch.device) -> Activation:
    """Stored rows (N, L), float32 or bfloat16 kept as uint16, to the float32 activation that enters stage `cut`."""
    flat = torch.from_numpy(rows)
    if rows.dtype == np.uint16:
        flat = flat.view(torch.bfloat16)
    return backbone.unflatten(cut, flat.to(device).float())
