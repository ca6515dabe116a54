"""The precisions that a device computes in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Precision = Literal["float32", "bfloat16"]
SAME = 1 - 1e-5  # agreement of what differs by rounding in float32 only
_NEAR = 1e-3  # how far apart its numbers are at most, beside their size and that of the largest


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


def agreement(truth: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """The least cosine of any picture's pooled features of any stage, of (N, width) a stage."""
    # A stage whose features are all zero has no direction; it agrees with itself.
    cosines = [
        torch.cosine_similarity(a, b, dim=1).where((a != b).any(dim=1), 1.0) for a, b in zip(truth, found, strict=True)
    ]
    return float(torch.stack(cosines).min())


def same(truth: Sequence[Tensor], found: Sequence[Tensor]) -> bool:
    """Whether pooled features of every stage, (N, width) each, differ by rounding in float32 only, in direction and in length."""
    near = (torch.allclose(b, a, _NEAR, _NEAR * float(a.abs().max())) for a, b in zip(truth, found, strict=True))
    return agreement(truth, found) >= SAME and all(near)


def _cpu_flags() -> frozenset[str]:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:  # noqa: PTH123
            for line in file:
                if line.startswith("flags"):
                    return frozenset(line.split(":", 1)[1].split())
    except OSError:
        return frozenset()  # not Linux: float32 is the safe answer
    return frozenset()
