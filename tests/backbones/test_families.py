"""One small model of many kinds of architecture: cut, and the whole contract kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from timm.models import beit, crossvit, densenet, eva, levit, mlp_mixer
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from headstart.backbones.backbone import InputSpec, Origin
from headstart.backbones.check import check_backbone
from headstart.backbones.partition import partition


def small(name: str, **options: Any) -> Callable[[], nn.Module]:
    """A registered timm model, made smaller by its options."""
    return lambda: timm.create_model(name, num_classes=0, **options)


# What makes it different from the others stands behind each.
SMALL: dict[str, tuple[int, Callable[[], nn.Module]]] = {
    "resnet": (64, small("test_resnet")),
    "efficientnet": (64, small("test_efficientnet")),  # depthwise, squeeze-excite, head convolution
    "mobilenetv3": (64, small("lcnet_035")),  # a convolution after pooling
    "vit": (160, small("test_vit")),  # class token, fixed positions
    "swin": (56, small("swin_tiny_patch4_window7_224", img_size=56, embed_dim=16, depths=(1, 1, 2),
                       num_heads=(1, 2, 2))),  # channels last, windows folded into the batch
    "convnext": (64, small("test_convnext")),
    "mixer": (64, lambda: mlp_mixer.MlpMixer(0, 64, patch_size=16, num_blocks=4, embed_dim=32)),
    "densenet": (64, lambda: densenet.DenseNet(8, (2, 2, 2), num_classes=0)),  # lists of features
    "regnet": (64, small("regnetx_002")),
    "crossvit": (48, lambda: crossvit.CrossVit(48, num_classes=0, embed_dim=(16, 32), num_heads=(2, 2),
                                               depth=([1, 2, 0], [1, 2, 0], [1, 2, 0]))),  # two streams
    "eva": (56, lambda: eva.Eva(56, 14, num_classes=0, embed_dim=32, depth=4, num_heads=2,
                                use_rot_pos_emb=True)),
    "beit": (64, lambda: beit.Beit(64, num_classes=0, embed_dim=32, depth=4, num_heads=2,
                                   use_shared_rel_pos_bias=True)),  # one bias table for all blocks
    "levit": (64, lambda: levit.Levit(64, num_classes=0, embed_dim=(16, 16, 32), num_heads=(1, 1, 2),
                                      key_dim=8,
                                      depth=(1, 1, 1))),  # keeps tables in eval mode
    "nfnet": (64, small("test_nfnet")),  # scaled weight standardisation, no norms
    "hrnet": (64, small("hrnet_w18_small")),  # four resolutions side by side
    "coatnet": (160, small("test_coatnet")),  # convolution and attention
}  # fmt: skip


@pytest.mark.parametrize("kind", SMALL)
def test_the_contract_holds(kind: str) -> None:
    side, build = SMALL[kind]
    torch.manual_seed(0)
    network = build()
    features = network(torch.zeros(2, 3, side, side)).shape[1]
    backbone = partition(network, InputSpec(size=(side, side)), Origin(f"timm:{kind}", "", "", "", ""))
    assert 4 <= len(backbone.stages) <= 14
    assert len(set(backbone.names)) == len(backbone.names)
    assert backbone.widths[-1] == features
    check_backbone(backbone)


def test_a_network_too_large_to_run_is_cut_on_the_meta_device() -> None:
    with torch.device("meta"):
        network = timm.create_model("vit_huge_patch14_224", num_classes=0)
    spec = InputSpec()
    backbone = partition(network, spec, Origin("timm:vit_huge_patch14_224", "", "", "", ""), verify=False)
    check_backbone(backbone, device="meta")
    assert sum(p.numel() for p in backbone.parameters()) == sum(p.numel() for p in network.parameters())
    assert 4 <= len(backbone.stages) <= 14


def test_cutting_alone_computes_nothing() -> None:
    """The forward pass is recorded on the meta device: that is what makes cutting quick."""
    devices: list[str] = []

    class Watched(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if "convolution" in str(func):
                devices.append(args[0].device.type)
            return func(*args, **(kwargs or {}))

    network = timm.create_model("tf_efficientnet_lite0", num_classes=0)
    with Watched():
        partition(network, InputSpec(), Origin("timm:tf_efficientnet_lite0", "", "", "", ""), verify=False)
    assert devices and set(devices) == {"meta"}
