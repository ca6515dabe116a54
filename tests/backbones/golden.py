"""Golden values of the default backbone: `python -m tests.backbones.golden` writes them to golden.json beside it."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from headstart.backbones.catalog import DEFAULT_BACKBONE, load_backbone

GOLDEN = Path(__file__).with_suffix(".json")


def ramp_features() -> Tensor:
    """Features (1280,) of a colour ramp: red rises to the right, green downwards, blue to the left."""
    side = torch.linspace(-1, 1, 224)
    ramp = torch.stack([side.expand(224, 224), side[:, None].expand(224, 224), -side.expand(224, 224)])
    return load_backbone(DEFAULT_BACKBONE)(ramp[None])[0]


if __name__ == "__main__":
    values = [round(value, 5) for value in ramp_features().tolist()]
    GOLDEN.write_text(json.dumps(values) + "\n", encoding="utf-8")
