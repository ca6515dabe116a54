"""Networks whose weights arrive by pip, as they are written down beside this file: nothing of timm is imported to have them.

`python -m tests.backbones.described` writes these files again from timm's code; a test compares them with it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from headstart.backbones import written
from headstart.backbones.backbone import Backbone, InputSpec, Origin
from headstart.backbones.bundled import BUNDLED, CLASSIFIER, Bundled, locate, to_timm, verified
from headstart.backbones.modules import Record
from headstart.backbones.weights import classifier_of, expect, from_file, read_weights
from headstart.errors import BackboneError

NETWORKS = Path(__file__).parent


class Described(Record):
    """One of these files: timm's preprocessing, and the network."""

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
        given, origin = by_pip(f"timm:{name}", entry, file, shapes)
        spec = replace(spec, interpolation="bilinear") if entry.bilinear else spec
    else:
        given, origin = from_file(f"timm:{name}", weights)
    expect(shapes, given, str(file), CLASSIFIER)
    own = {held: given.get(held, torch.tensor(0)) for held in shapes}  # only counters of steps may not be there
    try:
        backbone = written.read(described.network, own, spec, origin, partial(_original, name))
    except BackboneError:
        return None
    backbone.classifier = classifier_of(given, CLASSIFIER, backbone.widths[-1])
    return backbone


def by_pip(name: str, entry: Bundled, file: Path, names: Iterable[str]) -> tuple[dict[str, Tensor], Origin]:
    """The weights that came by pip, for a backbone of that name whose tensors have such `names`, and where they come from.

    Raises:
        WeightsError: the file has another digest than it should.
    """
    given = to_timm(entry, read_weights(verified(entry, file)), names)
    return given, Origin(name, entry.source, entry.licence, entry.url, entry.sha256)


def _original(name: str) -> nn.Module:
    from headstart.backbones.from_timm import build

    with torch.random.fork_rng(devices=[]):  # its weights are drawn, and exchanged for those of the backbone
        return build(name)
