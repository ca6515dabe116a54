"""Frozen stages handed to a compiler: faster, where a job is long enough to earn the compilation back."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from headstart import runtime
from headstart.backbones.backbone import Backbone
from headstart.errors import BackboneError, MissingExtra
from headstart.features.precision import Precision, autocast

Runner = Literal["eager", "openvino", "compile"]
Program = Callable[[Tensor], Tensor]
_NAMES: dict[Runner, str] = {"openvino": "OpenVINO", "compile": "torch.compile"}
# Seconds of frozen forward passes from which a compiler is tried unasked: several times what it takes to compile.
WORTH: dict[Runner, float] = {"openvino": 8.0, "compile": 240.0}
# The same where torch runs in bfloat16 already. OpenVINO's was too coarse on all that was measured (benchmarks/precision.py),
# so that trying it may take but a small part of the time.
WORTH_ROUNDED: dict[Runner, float] = {**WORTH, "openvino": 60.0}


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
    """Compilers that are tried unasked on this device. On a CPU `torch.compile` loses to folded copies (benchmarks/engines.py); on a
    GPU it brings CUDA graphs."""
    if device.type == "cuda":
        return ("compile",)
    return ("openvino",) if device.type == "cpu" and version("openvino") else ()


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
    tail, size, name = _Tail(backbone, start).eval(), len(entering), _NAMES[runner]
    if runner == "openvino" and entering.device.type != "cpu":
        raise BackboneError(
            f"OpenVINO runs on the CPU here, and this run uses {entering.device}. Use --engine compile, or eager."
        )
    with _failing(f"{name} cannot compile this backbone here"):
        program = (
            _openvino(tail, entering, precision)
            if runner == "openvino"
            else _inductor(tail, entering, precision, graphs=entering.is_cuda)
        )

    def padded(activation: Tensor) -> Tensor:
        # Programs are made for one shape: that is faster, and no shape waits for another compilation.
        if len(activation) > size:
            return torch.cat([padded(part) for part in torch.split(activation, size)])
        lacking = size - len(activation)
        full = (
            torch.cat([activation, activation[-1:].expand(lacking, *activation.shape[1:])]) if lacking else activation
        )
        with _failing(f"{name} cannot run this backbone here"):
            return program(full)[: len(activation)]

    return padded


@contextmanager
def _failing(what: str) -> Iterator[None]:
    """Compilers raise what they like; within, that becomes a `BackboneError`."""
    try:
        yield
    except MissingExtra:
        raise
    except Exception as error:
        reason = str(error).strip().partition("\n")[0][:200]
        raise BackboneError(f"{what} ({reason}). Use --engine eager.") from error


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

    class Own(threading.local):
        """A request serves one thread at a time: every thread makes its own."""

        def __init__(self) -> None:
            self.request = network.create_infer_request()

    own = Own()

    def program(activation: Tensor) -> Tensor:
        found = own.request.infer([activation.contiguous().numpy()])[0]
        return torch.from_numpy(np.array(found, dtype=np.float32))

    return program


def _inductor(tail: _Tail, entering: Tensor, precision: torch.dtype, *, graphs: bool) -> Program:
    how: dict[str, Any] = {"mode": "reduce-overhead"} if graphs else {"options": {"cpp.threads": 1}}
    run = torch.compile(tail, fullgraph=True, **how)

    def program(activation: Tensor) -> Tensor:
        name: Precision = "bfloat16" if precision == torch.bfloat16 else "float32"
        with torch.inference_mode(), autocast(activation.device, name):
            return torch.as_tensor(run(activation)).float().clone()

    # It is compiled for the number of threads that its caller has, which is one for every worker. CUDA graphs belong to the thread
    # that recorded them, and have one set of buffers: there a thread of their own runs them all.
    own = runtime.workers(1)
    with runtime.threads_kept():
        for _ in range(3 if graphs else 1):  # the graph is recorded after two runs
            own.submit(program, entering).result()
    if not graphs:
        own.shutdown()
        return program
    return lambda activation: own.submit(program, activation).result()
