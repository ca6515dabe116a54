"""A person's own network: any `nn.Module` from images to one tensor of features."""

from __future__ import annotations

import copy

import torch
from torch import nn

from headstart.backbones.backbone import Backbone, InputSpec, Origin
from headstart.backbones.partition import partition
from headstart.backbones.program import Submodule
from headstart.backbones.record import meta_copy, record
from headstart.errors import BackboneError


def load_module(
    network: nn.Module,
    input: InputSpec | None = None,
    classifier: str | None = None,
    licence: str = "unknown",
) -> Backbone:
    """Cut a copy of `network` into stages; the network itself is left as it is.

    network: images (N, 3, H, W) float32 to features (N, C), or to maps or tokens, which are then averaged.
    input: the preprocessing that its weights expect. Without it, 224 px and ImageNet's mean and standard
        deviation are
        assumed: give it wherever the network was trained differently, for wrong preprocessing outweighs the
            method.
    classifier: name of a submodule to leave out ("fc"), for a network that ends in class scores.

    Raises:
        BackboneError: it is no network, there is no submodule of that name, or it cannot be copied. PartitionError: it cannot be cut.
    """
    if not isinstance(network, nn.Module):
        given = f"the class {network.__name__}" if isinstance(network, type) else f"a {type(network).__name__}"
        raise BackboneError(
            f"Got {given}, expected a network: an instance of torch.nn.Module, or the name of a backbone."
        )
    network = dict(network.named_children()).get("_orig_mod", network)  # what torch.compile has wrapped
    own = _copied(network).eval()
    if classifier is not None:
        replace_module(own, classifier, nn.Identity())
    name = f"module:{type(network).__name__}"
    return partition(own, input or InputSpec(), Origin(name, "a network given in Python", licence, "", ""))


def _copied(network: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(network)
    except (RuntimeError, TypeError) as error:
        raise BackboneError(
            f"{type(network).__name__} cannot be copied: {str(error).partition('. ')[0]}. Where weights are computed from others, "
            "keep the result: torch.nn.utils.remove_weight_norm(module), or prune.remove(module, 'weight')."
        ) from error


def replace_module(network: nn.Module, path: str, module: nn.Module) -> None:
    """Put `module` in the place of the submodule at `path`.

    Raises:
        BackboneError: there is none.
    """
    holder, _, name = path.rpartition(".")
    if path not in dict(network.named_modules()):
        names = ", ".join(child for child, _ in network.named_children())
        raise BackboneError(f"{type(network).__name__} has no submodule '{path}'; at its top level it has: {names}.")
    setattr(network.get_submodule(holder), name, module)


def last_weighted(network: nn.Module, size: tuple[int, int]) -> str:
    """Name of the last module with weights that a forward pass calls: the classifier of an ordinary network."""
    recording = record(meta_copy(network), (2, 3, *size), torch.device("meta"))
    weighted = {path for path, module in network.named_modules() if next(module.parameters(), None) is not None}
    called = [op.target.path for op in recording.root.ops() if isinstance(op.target, Submodule)]
    return next(path for path in reversed(called) if path in weighted)
