"""What the peers in plain PyTorch share: timm's network with the given weights and a new head, its transforms, batches, answers."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from torchvision.datasets import ImageFolder

BACKBONE = "tf_efficientnet_lite0"
BATCH = 32
WORKERS = int(os.environ.get("PEER_WORKERS", "2"))


def network(weights: Path) -> Any:
    """The body, channels_last and in evaluation mode: its batch statistics stay those of the source while it trains, too."""
    net = timm.create_model(BACKBONE, pretrained=False, num_classes=0)
    net.load_state_dict(load_file(weights), strict=True)
    return net.to(memory_format=torch.channels_last).eval()


def transform(net: Any, training: bool = False) -> Any:
    """timm's own for this network; in training random crops, mirrored or not, of changed colours."""
    settings = timm.data.resolve_model_data_config(net)
    return timm.data.create_transform(**settings, **({"is_training": True, "auto_augment": None} if training else {}))


def batches(pictures: Any, shuffle: bool = False, size: int = BATCH) -> Any:
    """Decoded by `WORKERS`."""
    return torch.utils.data.DataLoader(pictures, size, shuffle=shuffle, num_workers=WORKERS)


def logits(model: Callable[[Any], Any], pictures: Any) -> Any:
    """Of all pictures, in their order."""
    with torch.no_grad():
        return torch.cat([model(x.to(memory_format=torch.channels_last)) for x, _ in batches(pictures)])


def tested(model: Callable[[Any], Any], tree: Path, shown: Any, classes: list[str]) -> tuple[list[str], list[str]]:
    """The test files in their order, and the class that the model answers to each; `shown` is the transform."""
    testing = ImageFolder(tree / "test", shown)
    return [path for path, _ in testing.samples], [classes[i] for i in logits(model, testing).argmax(1).tolist()]
