"""The public contract test of a backbone: run it over your own networks before you trust their stages."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from headstart.backbones.backbone import Backbone
from headstart.backbones.equality import check_equal, same_bits
from headstart.backbones.record import meta_copy
from headstart.errors import PartitionError


def check_backbone(backbone: Backbone, reference: nn.Module | None = None, device: str = "cpu") -> None:
    """Test every promise of a backbone, on copies; the backbone itself is left as it was.

    - Its stages hold every parameter and persistent buffer of `reference` once, under the original names.
    - In eval mode, stages in turn equal the reference bit by bit (float32, batches of 1 and 3), with its own weights
      and with altered ones, in which no layer is switched off by a zero.
    - Every stage works on the meta device at batch sizes 1 and 3 and gives the shapes that it states.
    - At every cut, one AdamW step in train mode leaves all frozen parameters and all buffers bit-identical, moves a
      trainable parameter, and runs no dropout in frozen stages.

    reference: the original network, features only; a copy that the backbone keeps, by default. device "meta"
        tests only what needs no values, for networks too large to run here.

    Raises:
        PartitionError: a promise is broken; the text says which.
    """
    original = backbone.original() if reference is None else copy.deepcopy(reference).eval()
    _check_names(backbone, original)
    _check_meta(backbone)
    if torch.device(device).type == "meta":
        return
    original.to(device)
    trial = copy.deepcopy(backbone).to(device)
    for batch in (1, 3):
        check_equal(trial, original, batch)
    _stir(original, backbone.input.size)
    trial.load_state(original.state_dict())
    for batch in (1, 3):
        check_equal(trial, original, batch)
    for cut in range(len(trial.stages), -1, -1):
        _check_cut(trial, cut, device)
    trial.train_from(len(trial.stages))
    original.load_state_dict(trial.state(), strict=True)
    original.train().eval()  # drops tables that were computed from the earlier weights
    check_equal(trial, original, 2)


def _broken(backbone: Backbone, promise: str, got: str) -> PartitionError:
    return PartitionError(f"{backbone.origin.name} breaks a promise: {promise}. Got: {got}. Use another backbone.")


def _check_names(backbone: Backbone, original: nn.Module) -> None:
    own, expected = backbone.state(), original.state_dict()
    if own.keys() != expected.keys():
        odd = sorted(own.keys() ^ expected.keys())
        raise _broken(backbone, "the stages hold exactly the original's weights", f"{len(odd)} odd names, as {odd[:3]}")
    for name, tensor in own.items():
        if tensor.shape != expected[name].shape:
            raise _broken(backbone, "every weight keeps its shape", f"{name} {tuple(tensor.shape)}")
    ids = [id(tensor) for stage in backbone.stages for tensor in [*stage.parameters(), *stage.buffers()]]
    if len(ids) != len(set(ids)):
        raise _broken(backbone, "a weight belongs to one stage", f"{len(ids) - len(set(ids))} belong to several")


def _check_meta(backbone: Backbone) -> None:
    hollow = meta_copy(backbone)
    assert isinstance(hollow, Backbone)
    with torch.no_grad():
        for batch in (1, 3):
            activation = torch.empty(batch, 3, *backbone.input.size, device="meta")
            for index, pooled in enumerate(hollow.pooled(activation)):
                if tuple(pooled.shape) != (batch, backbone.widths[index]):
                    raise _broken(backbone, "a stage has the width that it states", f"{tuple(pooled.shape)} at {index}")
            for index, stage in enumerate(hollow.stages):
                activation = stage(activation)
                parts = (activation,) if isinstance(activation, Tensor) else activation
                got = tuple(tuple(part.shape) for part in parts)
                if got != tuple((batch, *shape) for shape in backbone.shapes[index]):
                    raise _broken(backbone, "a stage has the shape that it states", f"{got} at stage {index}")
            flat = torch.empty(batch, sum(part.numel() // batch for part in parts), device="meta")
            hollow.unflatten(len(hollow.stages), flat)


def _stir(network: nn.Module, size: tuple[int, int]) -> None:
    """Alter the weights so that every layer has its say: constants get noise, statistics follow a noise batch."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.numel() and parameter.is_floating_point() and parameter.min() == parameter.max():
                parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter), alpha=0.1)
        keepers = [module for module in network.modules() if "running_mean" in module._buffers]
        if keepers:
            device = next(network.parameters()).device
            for module in keepers:
                module.train()
            network(torch.randn(4, 3, *size, generator=generator).to(device))
    network.train().eval()


def _check_cut(trial: Backbone, cut: int, device: str) -> None:
    trial.train_from(cut)
    trial.train()  # what somebody's training loop does
    promise = f"at cut {cut}"
    frozen = [stage.state_dict(keep_vars=True) for stage in trial.stages[:cut]]
    if any(module.training for stage in trial.stages[:cut] for module in stage.modules()):
        raise _broken(trial, f"{promise} frozen stages stay in eval mode", "a module in train mode")
    trainable = [p for group in trial.trainable() for p in group]
    held = {id(tensor) for part in frozen for tensor in part.values()}
    if any(id(p) in held for p in trainable) or any(
        p.requires_grad for s in trial.stages[:cut] for p in s.parameters()
    ):
        raise _broken(trial, f"{promise} only later stages train", "a trainable parameter in a frozen stage")
    if cut == len(trial.stages):
        return
    if not trial.trainable()[cut]:
        raise _broken(trial, f"{promise} there is something to train", "no parameter in the stage above it")
    everything = [*trial.named_parameters(), *trial.named_buffers()]
    before = {name: tensor.detach().clone() for name, tensor in everything}
    torch.manual_seed(cut)
    x = torch.randn(2, 3, *trial.input.size, device=device)
    F.cross_entropy(trial(x), torch.tensor([0, 1], device=device)).backward()  # type: ignore[no-untyped-call]
    torch.optim.AdamW(trainable, lr=1e-4).step()
    ids = {id(p) for p in trainable}
    moved = [name for name, tensor in everything if not same_bits(before[name], tensor)]
    stray = [name for name, tensor in everything if name in moved and id(tensor) not in ids]
    if stray:
        raise _broken(trial, f"{promise} frozen weights and all buffers stay as they are", f"{stray[:3]} changed")
    if not moved:
        raise _broken(trial, f"{promise} a step moves the trainable weights", "none moved")
