"""Frozen stages handed to a compiler: faster, where a job is long enough to earn the compilation back."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from headstart import runtime
from headstart.backbones.backbone import Backbone
from headstart.errors import BackboneError, MissingExtra

Runner = Literal["eager", "openvino", "compile"]
Program = Callable[[Tensor], Tensor]
# Seconds of frozen forward passes from which a compiler is tried unasked: several times what it takes to compile.
WORTH: dict[Runner, float] = {"openvino": 8.0, "compile": 240.0}


@dataclass(frozen=True)
class Gain:
    """Seconds per picture without the compiler and with it, all workers at work, and seconds that compiling takes."""

    eager: float
    compiled: float
    building: float

    def pays(self, count: int) -> bool:
        """Whether `count` pictures earn it back."""
        return count * (self.eager - self.compiled) > self.building


def compilers(device: torch.device) -> tuple[Runner, ...]:
    """Compilers that are tried unasked on this device. On a CPU `torch.compile` takes most of a minute and gains nothing over
    folded copies; on a GPU it brings CUDA graphs."""
    if device.type == "cuda":
        return ("compile",)
    return ("openvino",) if device.type == "cpu" and find_spec("openvino") else ()


def version(runner: Runner) -> str:
    """Version of what compiles; "" where it is not installed."""
    try:
        return metadata.version("openvino" if runner == "openvino" else "torch")
    except metadata.PackageNotFoundError:
        return ""


def compiled(runner: Runner, backbone: Backbone, start: int, entering: Tensor, precision: torch.dtype) -> Program:
    """Compile `stages[start:]` for batches of as many pictures as `entering`, an example of what enters them.

    The program takes that activation and gives the pooled outputs of these stages, side by side: (N, sum of their widths)
    float32. Threads may share it.

    Raises:
        MissingExtra: where the compiler is not installed.
        BackboneError: where it cannot compile these stages.
    """
    tail = _Tail(backbone, start).eval()
    try:
        program = (_openvino if runner == "openvino" else _inductor)(tail, entering, precision)
    except MissingExtra:
        raise
    except Exception as error:  # compilers raise what they like
        reason = str(error).strip().partition("\n")[0][:200]
        raise BackboneError(f"{runner} cannot compile this backbone ({reason}). Use --engine eager.") from error
    size = len(entering)

    def padded(activation: Tensor) -> Tensor:
        # Programs are made for one shape: that is faster, and no shape waits for another compilation.
        if len(activation) > size:
            return torch.cat([padded(part) for part in torch.split(activation, size)])
        lacking = size - len(activation)
        full = (
            torch.cat([activation, activation[-1:].expand(lacking, *activation.shape[1:])]) if lacking else activation
        )
        return program(full)[: len(activation)]

    return padded


class _Tail(nn.Module):
    """`stages[start:]`, their outputs pooled."""

    def __init__(self, backbone: Backbone, start: int) -> None:
        super().__init__()
        self.backbone, self.start = backbone, start

    def forward(self, activation: Tensor) -> Tensor:
        return torch.cat(self.backbone.pooled(activation, self.start), dim=1)


def _openvino(tail: _Tail, entering: Tensor, precision: torch.dtype) -> Program:
    try:
        import openvino
        from openvino.frontend import FrontEndManager
        from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder
    except ImportError as error:
        raise MissingExtra("--engine openvino", "openvino", "openvino") from error

    # Not by `openvino.convert_model`, which tells its makers of every conversion.
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of values that tracing takes as constant: batch and picture size are
        traced = torch.jit.trace(  # type: ignore[no-untyped-call]
            tail, entering.contiguous(), check_trace=False
        )
        frontend = FrontEndManager().load_by_framework("pytorch")
        decoder = TorchScriptPythonDecoder(traced)  # what was loaded asks it until all is converted
        model = frontend.convert(frontend.load(decoder))
    model.reshape(list(entering.shape))
    workers = runtime.cpu_count()
    network = openvino.Core().compile_model(
        model,
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": "bf16" if precision == torch.bfloat16 else "f32",
            "NUM_STREAMS": workers,
            "INFERENCE_NUM_THREADS": workers,
        },
    )
    mine = threading.local()  # a request serves one thread at a time

    def program(activation: Tensor) -> Tensor:
        if not hasattr(mine, "request"):
            mine.request = network.create_infer_request()
        found = mine.request.infer([activation.contiguous().numpy()])[0]
        return torch.from_numpy(np.array(found, dtype=np.float32))

    return program


def _inductor(tail: _Tail, entering: Tensor, precision: torch.dtype) -> Program:
    # On a GPU all small kernels of a batch become one CUDA graph, whose buffers serve one batch at a time. On a CPU every worker
    # runs its own batch on one thread.
    how: dict[str, Any] = {"mode": "reduce-overhead"} if entering.is_cuda else {"options": {"cpp.threads": 1}}
    run = torch.compile(tail, fullgraph=True, **how)
    one = threading.Lock() if entering.is_cuda else nullcontext()

    def program(activation: Tensor) -> Tensor:
        bfloat16 = torch.autocast(activation.device.type, torch.bfloat16, enabled=precision == torch.bfloat16)
        with one, torch.inference_mode(), bfloat16:
            return torch.as_tensor(run(activation)).float().clone()

    program(entering)
    return program
