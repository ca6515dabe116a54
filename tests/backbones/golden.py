"""Golden values of the default backbone: `python -m tests.backbones.golden` prints them."""

from __future__ import annotations

import torch
from torch import Tensor

from headstart.backbones.catalog import DEFAULT_BACKBONE, load_backbone


def ramp_features() -> Tensor:
    """Features (1280,) of a colour ramp: red rises to the right, green downwards, blue to the left."""
    side = torch.linspace(-1, 1, 224)
    ramp = torch.stack([side.expand(224, 224), side[:, None].expand(224, 224), -side.expand(224, 224)])
    return load_backbone(DEFAULT_BACKBONE)(ramp[None])[0]


if __name__ == "__main__":
    found = ramp_features()
    print(f"mean {found.mean():.7f}  argmax {found.argmax()}  max {found.max():.4f}")
