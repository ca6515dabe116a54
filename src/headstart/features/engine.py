"""Run a frozen stack as fast as this machine can, and no less exactly than its users may rely on."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headstart import runtime
from headstart.backbones.backbone import Activation, Backbone, InputSpec
from headstart.errors import BackboneError
from headstart.features.compiled import Program, Runner, compiled, version
from headstart.features.folded import can_fold, fold
from headstart.features.precision import SAME, Precision, agreement, autocast, has_fast_bfloat16, synchronize
from headstart.features.way import PLAIN, ROUNDED, Way

COSINE = 0.999  # the least agreement with float32, per picture and stage, that a faster precision must keep
AGREES = 0.9995  # what it must reach on the sample, so that other pictures keep that as well
CHEAP = 0.1  # leading stages with so small a share of the forward pass stay in float32 unasked: rounded, they harm most
SAMPLE = 8  # pictures
# Turns in each of which float32 has to be so many times as fast as bfloat16 to be preferred: noise alone hardly is.
TURNS, CLEARLY = 4, 1.25
# Pictures that a worker runs at a time. More do not fit a processor's caches, and are slower (EfficientNet-Lite0, two workers). What
# a GPU likes best has not been measured; it likes more.
BATCH, BATCH_CUDA = 4, 64
Pictures = NDArray[np.uint8] | Tensor  # (N, H, W, 3) uint8; a tensor where they were decoded on the device


def normalize(pictures: Pictures, spec: InputSpec, device: torch.device) -> Tensor:
    """uint8 pictures (N, H, W, 3) to the float32 (N, 3, H, W), channels_last, that the weights were trained with."""
    pixels = torch.as_tensor(pictures).to(device, non_blocking=True)
    scale = torch.tensor([255.0 * s for s in spec.std], device=device)
    shift = torch.tensor([m / s for m, s in zip(spec.mean, spec.std, strict=True)], device=device)
    # A row of pixels at a time: a last axis of three numbers is slow. The permuted view of an (N, H, W, 3) tensor is channels_last.
    rows = pixels.flatten(2).to(torch.float32).div_(scale.repeat(pixels.shape[2])).sub_(shift.repeat(pixels.shape[2]))
    return rows.view(pixels.shape).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class _Settled:
    """The way that was settled on, the networks that run it (exact stages, the others; None: not made yet), the state of the
    weights that they were made from, and the compiled program of the others, where they have one."""

    way: Way
    nets: tuple[Backbone, Backbone] | None
    state: tuple[int, ...]
    program: Program | None = None


@final
class Engine:
    """A backbone on a device in some way, behind NumPy in and NumPy out.

    `precision` "auto" takes bfloat16 where the device multiplies in it natively, but for as many leading stages as it takes for
    the pooled features of every stage, of the first pictures, to agree with float32 (see `AGREES`): rounded weights of the first few
    stages, on which all others build, do most of the harm. So far the choice depends on no clock, so it repeats; `pace` asks the
    clock. A precision that is named is taken as it is, with `exact` leading stages in float32. With `folded`, a CPU runs copies whose
    norms are folded into their convolutions, if those compute the same in float32. A `runner` that is named compiles the stages that
    are not exact, at the same precision if that agrees, else all of them in float32; "auto" leaves it to `hasten`. The backbone is
    taken to the device, to channels_last and to evaluation mode, and to that again whenever it has been trained since; threads may
    share the engine. A copy decides anew how it runs.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        precision: Precision | Literal["auto"] = "auto",
        exact: int = 0,
        device: torch.device | None = None,
        folded: bool = True,
        runner: Runner | Literal["auto"] = "eager",
    ) -> None:
        self.device = runtime.device() if device is None else device
        self.backbone = backbone
        backbone.eval()
        backbone.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.wanted: Precision | Literal["auto"] = precision
        self._exact = exact
        self.runner = runner
        self._now: _Settled | None = None
        self.weights = ""
        self._fold = folded and can_fold(self.device)
        self._lock, self._turn = threading.Lock(), threading.RLock()

    def __getstate__(self) -> dict[str, Any]:
        """All but the locks, and what was made for these very weights."""
        return {**vars(self), "_lock": None, "_turn": None, "_now": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock(), _turn=threading.RLock())

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
        return self._now.way.precision if self._now else None if self.wanted == "auto" else self.wanted

    @property
    def exact(self) -> int:
        """How many leading stages run in float32 whatever the precision."""
        return self._now.way.exact if self._now else self._exact

    def circumstances(self) -> dict[str, Any]:
        """All that the choice depends on beside weights and pictures: what was asked for, machine and torch."""
        return {
            "wanted": self.wanted,
            "exact": self._exact,
            "fold": self._fold,
            "runner": "eager" if self.runner == "auto" else f"{self.runner} {version(self.runner)}",
            "device": torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else str(self.device),
            "bfloat16": has_fast_bfloat16(self.device) and f"{ROUNDED}, every stage within {AGREES}",
            "machine": runtime.machine(),
            "torch": torch.__version__,
        }

    def adopt(self, way: Way) -> None:
        """Run the backbone, with the weights that it has now, in a way that was settled on before: nothing is compared again."""
        self._now, self.weights = _Settled(way, None, self._state()), self.weights or self.backbone.digest()

    def look(self) -> str:
        """The digest of the weights as they are. Where they have not been looked at since the way was settled, or were others then,
        that is undone: some optimizers change weights without a trace."""
        found = self.backbone.digest()
        if found != self.weights:
            self._now, self.weights = None, found
        return found

    def settle(self, pictures: NDArray[np.uint8]) -> None:
        """Decide how the backbone is run, on the first of these pictures (N, H, W, 3), unless that is decided; what a precision costs
        that was asked for is measured all the same."""
        now, sample = self._ready(pictures), pictures[:SAMPLE]
        if now.way.precision == "bfloat16" and now.way.agreement is None:
            with torch.inference_mode():
                least = self._agreement(self._pooled(self._plain(), sample), self._pooled(now, sample))
            self._now = replace(now, way=replace(now.way, agreement=least))

    def _ready(self, pictures: Pictures) -> _Settled:
        if any(module.training for module in self.backbone.modules()):  # dropout would answer otherwise each time
            self.backbone.eval()
        now = self._now
        if now is None or now.nets is None or now.state != self._state():
            with self._lock:
                if self._now is None or self._now.state != self._state():
                    self._now = self._asked(pictures[:SAMPLE])
                elif self._now.nets is None:
                    self._now = replace(self._now, nets=self._nets(self._now.way))
                now = self._now
        return now

    def _asked(self, sample: Pictures) -> _Settled:
        """The first way that agrees with plain float32, run by the compiler that was named, if one was.

        Raises:
            BackboneError: where that compiler cannot run the backbone.
        """
        now, runner = self._compared(sample, self.wanted), self.runner
        if runner == "auto" or runner == "eager":
            return now
        try:
            return self._by(runner, now, sample)
        except BackboneError:
            if self.wanted != "auto" or now.way.precision == "float32":
                raise
            return self._by(runner, self._compared(sample, "float32"), sample)

    def _by(self, runner: Runner, now: _Settled, sample: Pictures) -> _Settled:
        """The same way, run by a compiler.

        Raises:
            BackboneError: where that compiler cannot run the backbone, or does not agree with plain float32.
        """
        made = replace(now, way=replace(now.way, runner=runner))
        made = replace(made, program=self._program(made, sample))
        with torch.inference_mode():
            least = self._agreement(self._pooled(self._plain(), sample), self._pooled(made, sample))
        enough = SAME if now.way.precision == "float32" else COSINE if self.wanted == "bfloat16" else AGREES
        if not least >= enough:
            raise BackboneError(
                f"{runner} does not compute this backbone in {now.way.precision} exactly enough: its features have a cosine of "
                f"{least:.5f} with those of torch, where {enough} is needed. Use --engine eager."
            )
        return replace(made, way=replace(made.way, agreement=least))

    def _program(self, now: _Settled, pictures: Pictures) -> Program:
        """The compiled stages after the exact ones, made with pictures of the right size."""
        full = torch.as_tensor(pictures)[torch.arange(self.batch) % len(pictures)]
        with torch.inference_mode():
            entering = self._run(now, normalize(full, self.backbone.input, self.device), 0, now.way.exact)[0]
        if not isinstance(entering, Tensor):
            raise BackboneError(
                f"Several tensors enter stage {now.way.exact + 1}: that is not compiled. Use --engine eager."
            )
        return compiled(now.way.runner, self.backbone, now.way.exact, entering, getattr(torch, now.way.precision))

    def hasten(self, runner: Runner, pictures: NDArray[np.uint8]) -> float:
        """Have a compiler run the stages from now on, made with pictures (N, H, W, 3) uint8; the seconds that this took.

        Raises:
            BackboneError: where it cannot, or does not agree with plain float32; nothing has changed then.
        """
        now, began = self._ready(pictures), time.perf_counter()
        self._now = self._by(runner, now, pictures[:SAMPLE])
        return time.perf_counter() - began

    def seconds(self, pictures: NDArray[np.uint8]) -> float:
        """Wall seconds per picture of the frozen forward pass, all workers at work on pictures (N, H, W, 3) uint8 such as these."""
        now = self._ready(pictures)
        return min(self._lap(now, pictures, 2) for _ in range(3))  # the first pays for what is set up once

    def pace(self, pictures: NDArray[np.uint8], count: int, least: float) -> tuple[list[float], list[float]] | None:
        """Seconds per picture in the way in use and in float32, in turns up to the first in which float32 is not clearly faster;
        `pictures` are (N, H, W, 3) uint8.

        None where `count` pictures take less than `least` seconds, which two laps tell.
        """
        now = self._ready(pictures)
        assert now.nets is not None
        other = replace(now, way=Way("float32", folded=now.way.folded), nets=(now.nets[0], now.nets[0]))
        self._lap(now, pictures, 1)  # pays for what is set up once
        mine = [self._lap(now, pictures, 1)]
        if mine[0] * count < least:
            return None
        self._lap(other, pictures, 1)
        its = [self._lap(other, pictures, 1)]
        while mine[-1] >= CLEARLY * its[-1] and len(its) < TURNS:
            mine.append(self._lap(now, pictures, 1))
            its.append(self._lap(other, pictures, 1))
        return mine, its

    def use_float32(self, pictures: NDArray[np.uint8]) -> None:
        """Run the backbone in float32 from now on, in the way that `pace` has timed, if that computes the same as plain float32."""
        found = self._compared(pictures[:SAMPLE], "float32")
        if self.way is not None and found.way.folded == self.way.folded:
            self._now = found

    def _lap(self, now: _Settled, pictures: NDArray[np.uint8], batches: int) -> float:
        """Wall seconds per picture of so many batches for every worker, all of them at work."""

        def run(part: NDArray[np.uint8]) -> None:
            with torch.inference_mode():
                self._pooled(now, part).cpu()

        count = batches * self.batch * runtime.cpu_count()
        many = np.resize(pictures, (count, *pictures.shape[1:]))
        began = time.perf_counter()
        for _ in runtime.parallel(run, [many[at : at + self.batch] for at in range(0, count, self.batch)]):
            pass
        return (time.perf_counter() - began) / count

    def _nets(self, way: Way) -> tuple[Backbone, Backbone]:
        """The networks that run the exact stages and the others."""
        copies = fold(self.backbone, *[torch.bfloat16] * (way.precision == "bfloat16")) if way.folded else ()
        return (copies[0], copies[-1]) if copies else (self.backbone, self.backbone)

    def _plain(self) -> _Settled:
        """The backbone as it is, in float32: what every other way is compared with."""
        return _Settled(PLAIN, (self.backbone, self.backbone), self._state())

    def _compared(self, sample: Pictures, wanted: Precision | Literal["auto"]) -> _Settled:
        """The first way of the precision wanted that agrees with plain float32 on the sample, the fastest first."""
        state, native = self._state(), has_fast_bfloat16(self.device)
        plain = self._plain()
        first: Precision = "bfloat16" if wanted == "bfloat16" or (wanted == "auto" and native) else "float32"
        # oneDNN refuses bfloat16 where the processor lacks it; torch's own kernels only take longer.
        nets = self._nets(Way(first, folded=self._fold and (native or first == "float32")))
        folds = nets[0] is not self.backbone
        if wanted == "bfloat16":
            return _Settled(Way(first, self._exact, folds), nets, state)
        if first == "float32" and not folds:
            return plain
        ways = [(Way("float32", folded=True), SAME)] * folds
        if first == "bfloat16":
            done = np.cumsum(self.backbone.flops) / max(1, sum(self.backbone.flops))
            least, most = int((done <= CHEAP).sum()), len(self.backbone.stages) // 2
            ways = [(Way(first, exact, folds), AGREES) for exact in range(least, most + 1)] + ways
        with torch.inference_mode():
            truth = self._pooled(plain, sample)
            for way, enough in ways:
                tried = _Settled(way, nets if way.precision == first else (nets[0], nets[0]), state)
                agrees = self._agreement(truth, self._pooled(tried, sample))
                if agrees >= enough:
                    return replace(tried, way=replace(way, agreement=agrees))
        return plain

    def alike(self, backbone: Backbone) -> Engine:
        """An engine for other weights of the same network, at the precision settled on here."""
        return Engine(backbone, precision=self.settled or "float32", exact=self.exact, device=self.device)

    def _state(self) -> tuple[int, ...]:
        """Changes with every change of the weights that leaves a trace; `look` finds the others."""
        own = tuple(self.backbone.parameters())
        every = (*own, *self.backbone.buffers())
        versions = (0 if tensor.is_inference() else tensor._version for tensor in every)
        return self.backbone.changes, *versions, *(tensor.data_ptr() for tensor in own)

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
        with self._turn if self.backbone.alone else nullcontext():
            for net, first, end in self._parts(now, start, stop):
                activation, more = net.run_and_pool(activation, first, end)
                pooled += more
        return activation, pooled

    def pooled(self, pictures: Pictures) -> NDArray[np.float32]:
        """Pooled outputs of every stage, side by side: (N, sum of widths) float32, of pictures (N, H, W, 3) uint8."""
        now = self._ready(pictures)
        with torch.inference_mode():
            return self._pooled(now, pictures).cpu().numpy()

    def _pooled(self, now: _Settled, pictures: Pictures) -> Tensor:
        images = normalize(pictures, self.backbone.input, self.device)
        if now.way.runner == "eager":
            return torch.cat(self._run(now, images, 0, len(self.backbone.stages))[1], dim=1).float()
        program = now.program
        if program is None:  # a way that was adopted is compiled when it is first used
            with self._lock:
                current = self._now if self._now is not None and self._now.way == now.way else now
                program = current.program or self._program(current, pictures)
                self._now = replace(current, program=program)
        entering, stages = self._run(now, images, 0, now.way.exact)
        assert isinstance(entering, Tensor)
        return torch.cat([*(pooled.float() for pooled in stages), program(entering)], dim=1)

    def activations(self, pictures: NDArray[np.uint8], cut: int) -> tuple[Tensor, NDArray[np.float32]]:
        """Activation at the cut, flattened (N, L) in the running precision, and the pooled outputs of `stages[:cut]`."""
        return self.activations_at(pictures, (cut,))[0]

    def activations_at(
        self, pictures: NDArray[np.uint8], cuts: Sequence[int]
    ) -> tuple[tuple[Tensor, NDArray[np.float32]], ...]:
        """The same at several cuts, in ascending order, in one pass."""
        now, start = self._ready(pictures), 0
        found: list[tuple[Tensor, NDArray[np.float32]]] = []
        beside: tuple[Tensor, ...] = ()
        with torch.inference_mode():
            activation: Activation = normalize(pictures, self.backbone.input, self.device)
            for cut in cuts:
                activation, pooled = self._run(now, activation, start, cut)
                start, beside = cut, beside + pooled
                # An exact stage, or an operation that promotes, may have left more digits.
                flat = self.backbone.flatten(activation).to(getattr(torch, now.way.precision)).cpu()
                if cut < cuts[-1]:
                    flat = flat.clone()  # the next stage may work in place
                found.append((flat, torch.cat(beside, dim=1).float().cpu().numpy()))
        return tuple(found)

    def maps(self, pictures: NDArray[np.uint8], cut: int) -> Tensor:
        """The feature map (N, height, width, C) float32 that enters stage `cut`, where it is one (`Backbone.map_size`)."""
        now = self._ready(pictures)
        with torch.inference_mode():
            entering, _ = self._run(now, normalize(pictures, self.backbone.input, self.device), 0, cut)
            return self.backbone.as_map(cut - 1, entering).cpu()

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

    def _agreement(self, truth: Tensor, found: Tensor) -> float:
        """`agreement` of rows (N, sum of widths)."""
        widths = list(self.backbone.widths)
        return agreement(torch.split(truth, widths, dim=1), torch.split(found, widths, dim=1))


def as_activation(backbone: Backbone, rows: NDArray[Any], cut: int, device: torch.device) -> Activation:
    """Stored rows (N, L), float32 or bfloat16 kept as uint16, to the float32 activation that enters stage `cut`."""
    flat = torch.from_numpy(rows)
    if rows.dtype == np.uint16:
        flat = flat.view(torch.bfloat16)
    return backbone.unflatten(cut, flat.to(device).float())
