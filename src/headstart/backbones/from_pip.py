"""Networks whose weights arrive by pip, as they are written down beside this file: nothing of timm is imported to have them.

`python -m tests.backbones.described` writes these files again from timm's code; a test compares them with it.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict
from torch import nn

from headstart.backbones import written
from headstart.backbones.backbone import Backbone, InputSpec, Origin
from headstart.backbones.bundled import BUNDLED, CLASSIFIER, locate, to_timm, verified
from headstart.backbones.weights import classifier_of, expect, read_weights, sha256_of
from headstart.errors import BackboneError

NETWORKS = Path(__file__).parent


class Described(BaseModel):
    """One of these files: timm's preprocessing, and the network."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    input: InputSpec
    network: written.Written


def load_pip(name: str, weights: Path | None) -> Backbone | None:
    """The bundled backbone of that name, in eval mode on the CPU, with the `weights` of a file instead of its own, where one is given.
    None for another name, where its weights are not on this machine, and where this torch does not know all that is written down.

    Raises:
        WeightsError: its own weights have another digest than they should, or those that were given do not fit.
    """
    entry = BUNDLED.get(name)
    file = weights or (locate(entry) if entry else None)
    if entry is None or file is None:
        return None
    described = Described.model_validate_json((NETWORKS / f"{name}.json").read_bytes())
    spec, shapes = (
        described.input,
        {n: held.shape for stage in described.network.stages for n, held in stage.holds.items()},
    )
    if weights is None:
        given = to_timm(entry, read_weights(verified(entry, file)), shapes)
        origin = Origin(f"timm:{name}", entry.source, entry.licence, entry.url, entry.sha256)
        spec = replace(spec, interpolation="bilinear") if entry.bilinear else spec
    else:
        given = read_weights(file)
        origin = Origin(f"timm:{name}", f"file {file.name}", "unknown", "", sha256_of(file))
    expect(shapes, given, str(file), CLASSIFIER)
    own = {held: given.get(held, torch.tensor(0)) for held in shapes}  # only counters of steps may not be there
    try:
        backbone = written.read(described.network, own, spec, origin, partial(_original, name))
    except BackboneError:
        return None
    backbone.classifier = classifier_of(given, CLASSIFIER, backbone.widths[-1])
    return backbone


def _original(name: str) -> nn.Module:
    from headstart.backbones.from_timm import build

    with torch.random.fork_rng(devices=[]):  # its weights are drawn, and exchanged for those of the backbone
        return build(name)
