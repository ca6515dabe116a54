"""Backbone: a network as ordered stages; freezing, learning rates, caching, depth profile and report share the list."""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import final

import torch
from torch import Tensor, nn

from headstart.backbones.modules import text_of
from headstart.backbones.program import Activation as Activation  # named so, because other rooms use it
from headstart.backbones.program import Program
from headstart.errors import BackboneError, WeightsError


@dataclass(frozen=True)
class InputSpec:
    """The preprocessing that the weights were trained with.

    `size` (height, width) in pixels; `mean` and `std` per channel (RGB) of values in 0..1; `interpolation`
    "bicubic", "bilinear", ...; `crop` the side of the centre crop as a share of the resized image.

    Raises:
        BackboneError: for a size that is not two whole numbers above 0, a mean or std that is not three numbers, or a std that is
            not above 0.
    """

    size: tuple[int, int] = (224, 224)
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    interpolation: str = "bicubic"
    crop: float = 0.875

    def __post_init__(self) -> None:
        each = "one number per channel, such as (0.5, 0.5, 0.5)"
        for name, count, kind, least, expected in (
            ("size", 2, Integral, 0, "(height, width) in whole pixels, such as (224, 224)"),
            ("mean", 3, Real, -math.inf, each),
            ("std", 3, Real, 0, f"{each}, above 0"),
        ):
            value: object = getattr(self, name)
            if (
                not isinstance(value, Sequence)
                or len(value) != count
                or not all(isinstance(number, kind) and float(number) > least for number in value)
            ):
                raise BackboneError(f"InputSpec({name}={value!r}): expected {expected}.")


@dataclass(frozen=True)
class Origin:
    """Where weights come from. `digest` is the sha256 of the weights file, "" for weights drawn at random."""

    name: str
    source: str
    licence: str
    url: str
    digest: str


@dataclass(frozen=True)
class Layout:
    """What is known of one stage's output.

    `shapes` per tensor, without the batch axis; `axes` which of those is the channel axis, per tensor; `flops` of the
    stage, forward, per image (matrix products and convolutions).
    """

    shapes: tuple[tuple[int, ...], ...]
    axes: tuple[int, ...]
    flops: int


class Part(nn.Module):
    """A piece of the original module tree: what one stage owns, under the original names. It is never called."""


@final
class Stage(nn.Module):
    """A run of consecutive steps of the original network, with the parameters and buffers that they need.

    `net` holds them under their original names. What an earlier stage already owns (a bias table that all
    blocks share) is looked up there through `lenders`. `inside` is the same program with the network's modules looked into, as far as
    they can be; where it is `plain`, that leaves none of the network's own code (see `written`).
    """

    def __init__(
        self, name: str, program: Program, net: Part, lenders: Mapping[str, Part], inside: Program, plain: bool
    ) -> None:
        super().__init__()
        self.name = name
        self.program = program
        self.inside = inside
        self.plain = plain
        self.net = net
        self._lenders = dict(lenders)  # a plain dict: borrowed modules must not be registered twice

    def forward(self, activation: Activation) -> Activation:
        return self.program.run(activation, self._module, self._weight)

    def _module(self, path: str) -> nn.Module:
        return _inside(self._lenders.get(path, self.net), path)

    def _weight(self, path: str) -> Tensor:
        holder, _, name = path.rpartition(".")
        found = getattr(_inside(self._lenders.get(path, self.net), holder), name)
        assert isinstance(found, Tensor)
        return found


@final
class Backbone(nn.Module):
    """A network cut into ordered stages that, run in turn, equal the original network's pooled features.

    Every parameter and buffer of the original belongs to exactly one stage. A new backbone is frozen
    throughout and in eval mode; see `train_from`.

    stages: the stages in order.
    names: what each stage is called: the original names of the modules that it spans.
    input: the preprocessing that the weights expect; inputs are (N, 3, *input.size) float32, normalised.
    origin: where the weights come from.
    widths: pooled width of each stage's output.
    shapes: per stage the shape(s) of its output without the batch axis: a tuple of one or more tensors.
    flops: forward FLOPs per image of each stage.
    axes: per stage the channel axis of each of these tensors, the batch axis not counted.
    aliases: second names of tied weights, and their first names.
    cut: how many stages are frozen.
    trains: whether the stages can be trained; what was read from a bundle answers alone (see `written`).
    alone: whether only one thread may run it at a time, since a module keeps on itself what it computes of a picture.
    changes: how often the weights may have changed: counts calls that give them others, or make some trainable.
    classifier: weight (K, widths[-1]) and bias (K,) of the layer that told the source's classes, where it came with the weights. It is
        no part of the network.
    """

    stages: nn.ModuleList
    classifier: tuple[Tensor, Tensor] | None = None

    def __init__(
        self,
        stages: list[Stage],
        layouts: list[Layout],
        input: InputSpec,
        origin: Origin,
        build: Callable[[], nn.Module] | None,
        aliases: Mapping[str, str],
        fixed: frozenset[str],
        *,
        trains: bool = True,
        alone: bool = False,
    ) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.names = tuple(stage.name for stage in stages)
        self.input = input
        self.origin = origin
        self.shapes = tuple(layout.shapes for layout in layouts)
        self.flops = tuple(layout.flops for layout in layouts)
        self.axes = tuple(layout.axes for layout in layouts)
        self.widths = tuple(
            sum(shape[axis] for shape, axis in zip(layout.shapes, layout.axes, strict=True)) for layout in layouts
        )
        self.trains = trains
        self.alone = alone
        self._build = build
        self.aliases = dict(aliases)
        self._fixed = fixed
        self._computes: tuple[str, ...] = ()
        self.cut, self.changes = len(stages), 0
        self.train_from(len(stages))

    def forward(self, x: Tensor) -> Tensor:
        """Pooled features (N, widths[-1]) float32 of images x (N, 3, *input.size), normalised."""
        return self.pool(len(self.stages) - 1, self.run(x, 0, len(self.stages)))

    def run(self, activation: Activation, start: int, stop: int) -> Activation:
        """Run `stages[start:stop]` in turn on the activation at cut `start` (images, for 0).

        Stages may work in place: the activation that is passed in is spent, clone it to keep it.
        """
        self._expect(start, activation)
        for stage in self._between(start, stop):
            activation = stage(activation)
        return activation

    def pooled(self, activation: Activation, start: int = 0) -> tuple[Tensor, ...]:
        """Run `stages[start:]`; each output pooled to (N, widths[i]) float32."""
        return self.run_and_pool(activation, start, len(self.stages))[1]

    def run_and_pool(self, activation: Activation, start: int, stop: int) -> tuple[Activation, tuple[Tensor, ...]]:
        """Run `stages[start:stop]`; the last output, and each output pooled to (N, widths[i]) float32."""
        self._expect(start, activation)
        pooled = []
        for index, stage in enumerate(self._between(start, stop), start):
            activation = stage(activation)
            pooled.append(self.pool(index, activation))  # now: the next stage may work in place
        return activation, tuple(pooled)

    def pool(self, index: int, activation: Activation) -> Tensor:
        """The output of stage `index` averaged over all but batch and channel axis: (N, widths[index]) float32."""
        tensors = (activation,) if isinstance(activation, Tensor) else activation
        parts = []
        for tensor, axis in zip(tensors, self.axes[index], strict=True):
            others = [i for i in range(1, tensor.ndim) if i != axis + 1]
            parts.append(tensor.mean(others, dtype=torch.float32) if others else tensor.float())
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def map_size(self, index: int) -> tuple[int, int] | None:
        """Height and width in cells of the output of stage `index`, where that is one map of the picture; None where it is not."""
        shapes, axes = self.shapes[index], self.axes[index]
        if len(shapes) != 1 or len(shapes[0]) != 3:
            return None
        height, width = (length for axis, length in enumerate(shapes[0]) if axis != axes[0])
        scale = height / self.input.size[0]
        return (height, width) if abs(width - scale * self.input.size[1]) <= 1 else None

    def as_map(self, index: int, activation: Activation) -> Tensor:
        """The output of a stage that has a `map_size`, as (N, height, width, widths[index]) float32."""
        assert isinstance(activation, Tensor)
        return activation.movedim(1 + self.axes[index][0], -1).float()

    def activation_shapes(self, cut: int) -> tuple[tuple[int, ...], ...]:
        """Shape(s) without the batch axis of the activation at a cut: what `stages[cut:]` take in."""
        return self.shapes[cut - 1] if cut else ((3, *self.input.size),)

    def flatten(self, activation: Activation) -> Tensor:
        """One row per image (N, L): the tensors of an activation, row-major, one after the other."""
        if isinstance(activation, Tensor):
            return activation.flatten(1)
        return torch.cat([tensor.flatten(1) for tensor in activation], dim=1)

    def unflatten(self, cut: int, flat: Tensor) -> Activation:
        """The activation at `cut` again, contiguous, from its rows (N, L).

        Raises:
            BackboneError: the rows are of another length.
        """
        shapes = self.activation_shapes(cut)
        lengths = [math.prod(shape) for shape in shapes]
        if flat.ndim != 2 or flat.shape[1] != sum(lengths):
            raise BackboneError(
                f"rows of shape {tuple(flat.shape)} do not fit cut {cut} of {self.origin.name}, which has "
                f"{sum(lengths)} values per image. They were made at another cut or by another backbone; extract "
                "them again."
            )
        parts = tuple(
            part.reshape(-1, *shape) for part, shape in zip(torch.split(flat, lengths, dim=1), shapes, strict=True)
        )
        return parts[0] if len(parts) == 1 else parts

    def train_from(self, cut: int) -> None:
        """Freeze `stages[:cut]` and make `stages[cut:]` trainable.

        Frozen stages take no gradient and stay in eval mode, so that dropout is off and no buffer moves.
        Trainable stages go to train mode, but whatever keeps running statistics stays in eval: the statistics
        of a large source set are better than those of a small target. Later calls of `train()` and `eval()`
        keep to this cut.

        Raises:
            BackboneError: there is no such cut, or the network was read without its code.
        """
        if not 0 <= cut <= len(self.stages):
            raise BackboneError(f"cut {cut} is not within 0..{len(self.stages)}, the cuts of {self.origin.name}.")
        if cut < len(self.stages) and not self.trains:
            raise self._lacks_code("be trained")
        self.changes += min(cut, self.cut) < len(self.stages)
        self.cut = cut
        for index, stage in enumerate(self.stages):
            for name, parameter in stage.named_parameters():
                name = name.removeprefix("net.")
                parameter.requires_grad_(index >= cut and name not in self._fixed and parameter.is_floating_point())
                if index < cut:
                    parameter.grad = None
        self.train(cut < len(self.stages))

    def train(self, mode: bool = True) -> Backbone:
        """Switch the trainable stages between train and eval mode; frozen ones and running statistics stay in eval."""
        # The one override of a concrete method: a `model.train()` in somebody's loop reaches every submodule
        # through it, and a frozen BatchNorm that still learns is the commonest bug of transfer-learning code.
        super().train(False)
        self.changes += mode
        self.training = mode
        for stage in self.stages[self.cut :]:
            stage.train(mode)
            for module in stage.modules():
                if "running_mean" in module._buffers:
                    module.eval()
        return self

    def trainable(self) -> list[list[nn.Parameter]]:
        """Per stage, the parameters that train at the present cut; empty lists for frozen stages."""
        return [[p for p in stage.parameters() if p.requires_grad] for stage in self.stages]

    def state(self) -> dict[str, Tensor]:
        """Parameters and persistent buffers under the original network's names; it loads there with `strict=True`."""
        own: dict[str, Tensor] = {}
        for stage in self._between(0, len(self.stages)):
            own.update(stage.net.state_dict())
        first = {self.aliases.get(name, name): tensor for name, tensor in own.items()}
        return first | {alias: first[name] for alias, name in self.aliases.items() if name in first}

    def load_state(self, mapping: Mapping[str, Tensor]) -> None:
        """Copy weights in, strictly.

        Raises:
            WeightsError: names are missing, unexpected, or of another shape.
        """
        own = self.state()
        missing, unexpected = sorted(own.keys() - mapping.keys()), sorted(mapping.keys() - own.keys())
        misfit = [
            f"{name} is {tuple(mapping[name].shape)}, expected {tuple(tensor.shape)}"
            for name, tensor in own.items()
            if name in mapping and mapping[name].shape != tensor.shape
        ]
        if missing or unexpected or misfit:
            raise WeightsError(
                f"the weights do not fit {self.origin.name}: {_some('missing', missing)}; "
                f"{_some('unexpected', unexpected)}; {_some('wrong shape', misfit)}. "
                "Give weights that were saved from this very architecture."
            )
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(mapping[name])
        self.changes += 1
        mode = self.training
        super().train(True)  # modules that keep tables computed from their weights in eval mode drop them now
        self.train(mode)

    def digest(self, stop: int | None = None) -> str:
        """BLAKE2b hex digest of `stages[:stop]`: their names, what they compute, and name, dtype, shape and bytes of every
        parameter and buffer.

        It is the same for a network that is read from what was written down (`written`) as for the one that was cut.
        """
        total = hashlib.blake2b(digest_size=32)
        stages = self._between(0, len(self.stages) if stop is None else stop)
        for stage, computes in zip(stages, self.computes(), strict=False):
            total.update(f"stage {stage.name}\n{computes}\n".encode())
            computed = {} if self.alone else dict(stage.net.named_buffers())  # where they may be of the last picture
            for name, tensor in sorted((computed | stage.net.state_dict()).items()):
                plain = tensor.detach().cpu().contiguous()
                total.update(f"{name} {plain.dtype} {tuple(plain.shape)}\n".encode())
                total.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes() if plain.numel() else b"")
        return total.hexdigest()

    def computes(self) -> tuple[str, ...]:
        """Per stage, a BLAKE2b hex digest of what it computes beside its weights: functions, settings of modules, code that cannot be
        looked into, and along which axes its output is pooled. It is found once."""
        if not self._computes:
            self._computes = tuple(
                _hashed([str(stage.inside), str(axes), *(text_of(self._held(path)) for path in stage.inside.called())])
                for stage, axes in zip(self._between(0, len(self.stages)), self.axes, strict=True)
            )
        return self._computes

    def _held(self, path: str) -> nn.Module:
        """The module of that name, whichever stage holds it."""
        for stage in self._between(0, len(self.stages)):
            with contextlib.suppress(AttributeError):
                found = _inside(stage.net, path)
                if not isinstance(found, Part):
                    return found
        raise AttributeError(f"there is no {path} here.")

    def original(self) -> nn.Module:
        """A copy of the original network, in eval mode on this backbone's device, with the present weights.

        Raises:
            BackboneError: it was read without the network's own code.
        """
        if self._build is None:
            raise self._lacks_code("give its network")
        device = next((tensor.device for tensor in self.state().values()), torch.device("cpu"))
        network = self._build().to(device).eval()
        network.load_state_dict(self.state(), strict=True)
        return network

    def _between(self, start: int, stop: int) -> list[Stage]:
        return [stage for stage in self.stages[start:stop] if isinstance(stage, Stage)]

    def _lacks_code(self, what: str) -> BackboneError:
        how = "module=YourNetwork()" if self.origin.name.startswith("module:") else "trainable=True"
        return BackboneError(
            f"{self.origin.name} was read from a model without the code of its network, which is enough to answer, but not to {what}. "
            f"Read the model with headstart.load(folder, {how})."
        )

    def _expect(self, cut: int, activation: Activation) -> None:
        # Shapes of the recorded pass are built into the stages; another input size could compute something
        # wrong.
        tensors = (activation,) if isinstance(activation, Tensor) else activation
        got, expected = tuple(tuple(tensor.shape[1:]) for tensor in tensors), self.activation_shapes(cut)
        if got != expected:
            raise BackboneError(
                f"got an activation of shape {got} (without the batch axis), expected {expected} at cut {cut} of "
                f"{self.origin.name}. Images must have the size of `backbone.input.size`."
            )


def _inside(holder: nn.Module, path: str) -> nn.Module:
    """As `get_submodule`, which takes longer than some layers."""
    for name in path.split(".") if path else ():
        found = holder._modules.get(name)
        if found is None:
            raise AttributeError(f"there is no {path} here.")
        holder = found
    return holder


def _hashed(texts: list[str]) -> str:
    return hashlib.blake2b("\n".join(texts).encode(), digest_size=16).hexdigest()


def _some(what: str, names: list[str]) -> str:
    shown = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
    return f"{what} {len(names)}" + (f" ({shown})" if names else "")
