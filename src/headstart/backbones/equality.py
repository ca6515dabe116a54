"""Whether stages equal the network that they were cut from: bit by bit, with every weight once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from headstart.backbones import written
from headstart.backbones.backbone import Backbone
from headstart.errors import PartitionError


def check_equal(
    backbone: Backbone, reference: nn.Module, batch: int, seed: int = 0
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Compare the stages in turn with the reference's pooled output, bit by bit, on random images (eval mode); the images
    (N, 3, H, W) and the pooled output of every stage. A single image is also compared with itself beside another one.

    Raises:
        PartitionError: they differ, or running them changes a weight.
    """
    weight = next(iter(backbone.state().values()))
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, 3, *backbone.input.size, generator=generator).to(weight.device)
    other = torch.randn(1, 3, *backbone.input.size, generator=generator).to(weight.device)
    modes, last = backbone.training, len(backbone.stages) - 1
    before = _changes([reference, backbone])
    with torch.no_grad():
        expected = backbone.pool(last, reference(x.clone()))
        beside = backbone.pool(last, reference(torch.cat([x, other])))[:1] if batch == 1 else expected
        backbone.eval()
        pooled = _stage_by_stage(backbone, x)
        backbone.train(modes)
    changed = [name for name, change in _changes([reference, backbone]).items() if before.get(name, change) != change]
    if changed:
        raise PartitionError(
            f"{backbone.origin.name} changes {changed[0]} when it answers, in evaluation mode, expected that only training changes "
            "parameters and buffers: the same picture would not get the same features again. Take out what does so, as an observer."
        )
    if not same_bits(pooled[-1], expected):
        raise PartitionError(
            f"the stages of {backbone.origin.name} do not equal the original network at batch size {batch}, expected "
            "bit-equal features. It computes something that cannot be cut (state kept between calls, randomness, "
            "memory shared across modules). Use another backbone."
        )
    size = float(expected.nan_to_num(0.0, 0.0, 0.0).abs().max())  # weights that are no numbers are another's to refuse
    if not torch.allclose(beside, expected, rtol=1e-3, atol=1e-3 * size, equal_nan=True):
        raise PartitionError(
            f"what {backbone.origin.name} gives for a picture depends on those beside it, expected that each is answered alone. Give "
            "normalisation running statistics (track_running_stats=True), or use another backbone."
        )
    return x, pooled


def check_complete(backbone: Backbone, network: nn.Module) -> None:
    """Every name of the original state once, no tensor in two stages."""
    own, expected = backbone.state(), network.state_dict()
    seen: set[int] = set()
    for stage in backbone.stages:
        ids = {id(tensor) for tensor in [*stage.parameters(), *stage.buffers()]}
        if ids & seen:
            raise PartitionError(f"a weight of {backbone.origin.name} stands in two stages. Use another backbone.")
        seen |= ids
    if own.keys() != expected.keys():
        odd = sorted(own.keys() ^ expected.keys())[:4]
        raise PartitionError(
            f"the stages of {backbone.origin.name} do not hold exactly the original weights (see {odd}). "
            "Use another backbone."
        )


def reads_the_same(backbone: Backbone, x: Tensor, pooled: tuple[Tensor, ...]) -> bool:
    """Whether the backbone can be written down, and what is read from that gives the same bits."""
    try:
        found = written.write(backbone)
        if found is None:
            return False
        tensors = backbone.state() | written.computed(backbone)
        text = found.model_dump_json(exclude_defaults=True)
        again = written.read(written.Written.model_validate_json(text), tensors, backbone.input, backbone.origin)
        with torch.no_grad():
            return all(map(same_bits, _stage_by_stage(again, x), pooled))
    except Exception:  # whatever a function asks of who calls it: such a network keeps its code
        return False


def _stage_by_stage(backbone: Backbone, x: Any) -> tuple[Tensor, ...]:
    """The pooled output of every stage; each is given a clone, so that stages that only agree as they share memory are found out."""
    pooled = []
    for place, stage in enumerate(backbone.stages):
        x = stage(x.clone() if isinstance(x, Tensor) else tuple(tensor.clone() for tensor in x))
        pooled.append(backbone.pool(place, x))
    return tuple(pooled)


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of one type are equal bit for bit, NaNs included."""
    bits = (tensor.detach().reshape(-1).view(torch.uint8) for tensor in (one, other))
    return one.shape == other.shape and torch.equal(*bits)


def _changes(networks: Sequence[nn.Module]) -> dict[str, tuple[int, ...]]:
    """What changes with every change of a parameter or buffer, by name; of computed buffers, whether they were altered in place."""
    found: dict[str, tuple[int, ...]] = {}
    for number, network in enumerate(networks):
        state = network.state_dict(keep_vars=True)
        for name, tensor in {**dict(network.named_buffers()), **state}.items():
            version = 0 if tensor.is_inference() else tensor._version
            # A computed buffer may be replaced, as tables are that are made when they are first needed.
            key = name if name in state else f"{name} (buffer {id(tensor)})"
            found[f"{key}{' of a stage' * number}"] = (version, id(tensor) if name in state else 0)
    return found
