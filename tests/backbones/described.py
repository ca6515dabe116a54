"""The networks whose weights arrive by pip, written down: `python -m tests.backbones.described` writes them again from timm's code."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from headstart.backbones import written
from headstart.backbones.backbone import Origin
from headstart.backbones.bundled import BUNDLED
from headstart.backbones.from_pip import NETWORKS, Described
from headstart.backbones.from_timm import build, input_spec
from headstart.backbones.partition import partition
from headstart.backbones.program import Submodule
from headstart.backbones.record import Call, meta_copy, record


def described(name: str) -> Described:
    """What timm's code does for a bundled backbone."""
    network = build(name)
    spec = input_spec(network)
    found = written.write(partition(network, spec, Origin(name, "", "", "", "")))
    assert found is not None
    return Described(
        input=spec, network=found.model_copy(update={"trains": same_in_training(network, (2, 3, *spec.size))})
    )


def same_in_training(network: nn.Module, shape: tuple[int, ...]) -> bool:
    """Whether a network does the same in train mode, with its running statistics frozen, as in eval mode."""
    return functions(network, shape, train=True) == functions(network, shape, train=False)


def functions(network: nn.Module, shape: tuple[int, ...], *, train: bool) -> list[Any]:
    """Everything that torch is asked for in a forward pass, and with what."""
    network = meta_copy(network).train(train)
    for module in network.modules():
        if "running_mean" in module._buffers:
            module.eval()
    return [*_flat(record(network, shape, torch.device("meta")).root)]


def _flat(call: Call) -> Iterator[Any]:
    for op in call.ops():
        if isinstance(op.target, Submodule):
            assert op.inside is not None
            yield from _flat(op.inside)
        else:
            yield op.target, op.args, op.kwargs, op.result


if __name__ == "__main__":
    for each in BUNDLED:
        text = described(each).model_dump_json(exclude_defaults=True)
        (NETWORKS / f"{each}.json").write_text(text + "\n", encoding="utf-8")
