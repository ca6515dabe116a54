"""Ownership: which stage holds which parameters, buffers and modules of the original network; each exactly once."""

from __future__ import annotations

import copy
from collections.abc import Iterable

from torch import Tensor, nn

from headstart.backbones.backbone import Part
from headstart.errors import PartitionError


class Owners:
    """Hands the modules and weights of `network` to stages, in stage order.

    atoms: names of modules that are only ever called as a whole; their weights stay together.
    aliases: second names of tied weights -> first names.
    """

    def __init__(self, network: nn.Module, atoms: Iterable[str]) -> None:
        self.network = network
        self.atoms = set(atoms)
        self.aliases: dict[str, str] = {}
        self.weights: dict[str, Tensor] = {}
        first: dict[int, str] = {}
        named = [
            *network.named_parameters(remove_duplicate=False),
            *network.named_buffers(remove_duplicate=False),
        ]
        for name, tensor in named:
            if id(tensor) in first:
                self.aliases[name] = first[id(tensor)]
            else:
                first[id(tensor)] = name
                self.weights[name] = tensor
        self.owner: dict[str, int] = {}
        self.modules: dict[int, list[str]] = {}
        self.direct: dict[int, list[str]] = {}

    def under(self, path: str) -> list[str]:
        """First names of all weights of the module at `path`."""
        names = [name for name in [*self.weights, *self.aliases] if name.startswith(f"{path}.")]
        return list(dict.fromkeys(self.aliases.get(name, name) for name in names))

    def free(self, stage: int, path: str) -> bool:
        """Whether no other stage holds a weight of this module."""
        return {self.owner.get(name, stage) for name in self.under(path)} <= {stage}

    def take_module(self, stage: int, path: str) -> int:
        """Give a module to `stage`, unless an earlier one has it; returns the stage that holds it.

        Raises:
            PartitionError: its weights are spread over several stages.
        """
        names = self.under(path)
        holders = {self.owner.get(name, stage) for name in names}
        if holders - {stage}:
            if len(holders) > 1 or any(name not in self.owner for name in names):
                raise PartitionError(
                    f"module '{path}' shares some of its weights with another part of the network and cannot "
                    "be given to one stage. Use another backbone."
                )
            holder_stage = holders.pop()
            self.modules[holder_stage].append(path)  # it may be held there under another of its names
            return holder_stage
        self.owner.update(dict.fromkeys(names, stage))
        self.modules.setdefault(stage, []).append(path)
        for alias, name in self.aliases.items():  # a module tied to this one must be held by the same stage
            holder = self._atom(alias)
            if name in names and holder and not holder.startswith(path) and not path.startswith(holder):
                self.owner.update({tied: stage for tied in self.under(holder) if tied not in self.owner})
                self.modules[stage].append(holder)
        return stage

    def take_weight(self, stage: int, path: str) -> int:
        """Give a weight that is used outside its module's call to `stage`, unless an earlier one has it."""
        if path in self.owner:
            return self.owner[path]
        atom = self._atom(path)
        if atom:
            return self.take_module(stage, atom)
        self.owner[path] = stage
        self.direct.setdefault(stage, []).append(path)
        return stage

    def take_rest(self, last: int) -> None:
        """Give weights that the forward pass never reads (an unused head) to the stage of their predecessor."""
        stage = 0
        for path in self.weights:
            if path not in self.owner:
                self.owner[path] = min(stage, last)
                self.direct.setdefault(self.owner[path], []).append(path)
            stage = self.owner[path]

    def fill(self, parts: list[Part]) -> None:
        """Register everything in the stages' trees, under the original names."""
        elsewhere: set[int] = set()
        for stage, net in enumerate(parts):
            held: list[str] = []
            for path in sorted(set(self.modules.get(stage, [])), key=lambda p: (p.count("."), p)):
                if any(path.startswith(f"{other}.") for other in held):
                    continue
                held.append(path)
                holder, _, name = path.rpartition(".")
                part(net, holder).register_module(name, self.network.get_submodule(path))
            for path in self.direct.get(stage, []):
                if not any(path.startswith(f"{other}.") for other in held):
                    self._register(net, path)
            _unshare(net, elsewhere)
            elsewhere |= {id(module) for module in net.modules()}

    def _register(self, net: Part, path: str) -> None:
        holder, _, name = path.rpartition(".")
        source, tensor = self.network.get_submodule(holder), self.weights[path]
        if isinstance(tensor, nn.Parameter):
            part(net, holder).register_parameter(name, tensor)
        else:
            persistent = name not in source._non_persistent_buffers_set
            part(net, holder).register_buffer(name, tensor, persistent=persistent)

    def _atom(self, path: str) -> str:
        """The outermost module that is called as a whole and contains this weight; "" where there is none."""
        pieces = path.split(".")
        prefixes = (".".join(pieces[:count]) for count in range(1, len(pieces)))
        return next((prefix for prefix in prefixes if prefix in self.atoms), "")


def part(net: Part, path: str) -> nn.Module:
    """The holder at `path` in a stage's tree, made where it is missing."""
    holder: nn.Module = net
    for name in path.split(".") if path else []:
        if name not in holder._modules:
            holder.register_module(name, Part())
        holder = holder.get_submodule(name)
    return holder


def _unshare(net: Part, elsewhere: set[int]) -> None:
    """Give a stage its own copy of weightless modules (one dropout for all blocks) that another stage holds
    too.

    Train mode is a property of the module: one object cannot be off in a frozen stage and on in a trainable
    one.
    """
    for holder in list(net.modules()):
        for name, child in list(holder._modules.items()):
            if child is not None and id(child) in elsewhere and not [*child.parameters(), *child.buffers()]:
                holder.register_module(name, copy.deepcopy(child))
