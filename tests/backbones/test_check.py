"""check_backbone must find each kind of fault."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from headstart.backbones.check import check_backbone
from headstart.errors import PartitionError
from tests.backbones.networks import ConvNet, cut


def test_the_backbone_is_left_as_it_was() -> None:
    backbone = cut(ConvNet())
    backbone.train_from(2)
    before = backbone.digest()
    check_backbone(backbone)
    assert backbone.digest() == before
    assert [bool(group) for group in backbone.trainable()] == [False, False, True, True, True]


def test_another_reference_is_found_out() -> None:
    backbone, other = cut(ConvNet()), ConvNet()
    with pytest.raises(PartitionError, match="do not equal the original"):
        check_backbone(backbone, other)


def test_a_missing_weight_is_found_out() -> None:
    backbone = cut(ConvNet())
    reference = backbone.original()
    del backbone.stages[0].net.scale
    with pytest.raises(PartitionError, match="hold exactly the original's weights"):
        check_backbone(backbone, reference)


def test_a_weight_in_two_stages_is_found_out() -> None:
    backbone = cut(ConvNet())
    backbone.stages[1].net.register_parameter("scale", backbone.stages[0].net.scale)
    with pytest.raises(PartitionError, match="a weight belongs to one stage"):
        check_backbone(backbone)


def test_a_buffer_that_learns_while_frozen_is_found_out() -> None:
    class Counts(nn.Module):  # moves its buffer even in eval mode, where gradients are asked for
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 1)
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            if torch.is_grad_enabled():
                self.seen += 1
            return self.conv(x)

    layers = [nn.Conv2d(3, 8, 3, 2), Counts(), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3)]
    with pytest.raises(PartitionError, match=r"frozen weights and all buffers stay as they are.*seen"):
        check_backbone(cut(nn.Sequential(*layers)))


def test_a_stage_of_another_width_is_found_out() -> None:
    backbone = cut(ConvNet())
    backbone.widths = (9, *backbone.widths[1:])
    with pytest.raises(PartitionError, match="the width that it states"):
        check_backbone(backbone, device="meta")


def test_a_shuffled_pair_of_stages_is_found_out() -> None:
    backbone = cut(ConvNet(blocks=4))
    first, second = backbone.stages[1], backbone.stages[3]
    first.program, second.program = second.program, first.program
    with pytest.raises((PartitionError, AttributeError)):
        check_backbone(backbone)
