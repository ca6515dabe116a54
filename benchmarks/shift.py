"""Whether the measured shift orders data sets as one would: photographs, then satellite, then microscopy, glyphs and textures.

python benchmarks/shift.py --data ../shared/data
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common import PLACES, backbone_by_backbone
from headstart.backbones.catalog import load_backbone
from headstart.data.load import load_dataset
from headstart.features.engine import Engine
from headstart.features.extract import extract
from headstart.features.shift import shift
from headstart.features.store import Store
from headstart.race import race
from verdict import digits

RESULTS = Path(__file__).parent / "results" / "shift.json"
MOST = 2000  # digits


def measured(name: str, source: Path) -> dict[str, Any]:
    """Shift by stage, entropy of the source's classifier, and the depth profile of one data set."""
    backbone, store = load_backbone(name), Store()
    dataset = load_dataset(digits(source.parent, MOST, 0, 10) if source.name == "mnist" else source)
    features = extract(backbone, dataset, store, engine=Engine(backbone))
    pool = dataset.indices("train")
    heads = race(features, dataset.labels[pool], dataset.fold[pool], len(dataset.classes), pool, store=store)
    found = shift(backbone, dataset, features, store)
    return {
        "pictures": len(pool), "distance": found.distance, "stages": found.stages, "entropy": found.entropy,
        "profile": [score.accuracy for score in heads.profile],
    }  # fmt: skip


if __name__ == "__main__":
    backbone_by_backbone(__doc__, RESULTS, measured, PLACES)
