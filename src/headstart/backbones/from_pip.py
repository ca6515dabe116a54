"""Networks whose weights arrive by pip, as they are written down beside this file: nothing of timm is imported to have them.

`python -m tests.backbones.described` writes these files again from timm's code; a test compares them with it.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict
from torch import nn

from headstart.backbones import written
from headstart.backbones.backbone import Backbone, InputSpec, Origin
from headstart.backbones.bundled import BUNDLED, CLASSIFIER, locate, to_timm, verified
from headstart.backbones.weights import classifier_of, read_weights

NETWORKS = Path(__file__).parent


class Described(BaseModel):
    """One of these files: the preprocessing, and the network."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    input: InputSpec
    network: written.Written


def load_pip(name: str) -> Backbone | None:
    """The bundled backbone of that name, in eval mode on the CPU; None for another name, or where its weights are not on this machine.

    Raises:
        WeightsError: the weights have another digest than they should.
    """
    entry = BUNDLED.get(name)
    file = locate(entry) if entry else None
    if entry is None or file is None:
        return None
    described = Described.model_validate_json((NETWORKS / f"{name}.json").read_bytes())
    names = [held for stage in described.network.stages for held in stage.holds]
    given = to_timm(entry, read_weights(verified(entry, file)), names)
    own = {held: given[held] for held in names if held in given}
    # BatchNorm's step counter came later than these files and takes no part in the computation.
    own |= {held: torch.tensor(0) for held in names if held.endswith("num_batches_tracked") and held not in given}
    origin = Origin(f"timm:{name}", entry.source, entry.licence, entry.url, entry.sha256)
    backbone = written.read(described.network, own, described.input, origin, partial(_original, name))
    backbone.classifier = classifier_of(given, CLASSIFIER, backbone.widths[-1])
    return backbone


def _original(name: str) -> nn.Module:
    from headstart.backbones.from_timm import build

    with torch.random.fork_rng(devices=[]):  # its weights are drawn, and exchanged for those of the backbone
        return build(name)
