"""Whether the measured shift orders data sets as one would: photographs, then satellite, then microscopy, glyphs and textures.

    python benchmarks/shift.py --data ../shared/data

The scans are slices of the brain template that nilearn brings (`pip install nilearn nibabel`; Fonov et al. 2011, ICBM 152): grey
pictures of the inside of a body, in three directions, which stand for what is like X-rays.
"""

from __future__ import annotations

from importlib.util import find_spec
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

import numpy as np  # isort: skip

RESULTS = Path(__file__).parent / "results" / "shift.json"
MOST = 2000  # digits
SCANS = "scans"
_TEMPLATE = "datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"  # in nilearn
_SIDE = 240  # pixels, of a slice and the black around it


def scans() -> tuple[np.ndarray, np.ndarray]:
    """Slices (N, 240, 240) uint8 of a head that show a twentieth of it or more, and in which of three directions each was cut (N,)."""
    import nibabel

    package = find_spec("nilearn")
    if package is None or package.origin is None:
        raise SystemExit("The scans come with nilearn. Type: pip install nilearn nibabel")
    whole = np.asarray(nibabel.load(Path(package.origin).parent / _TEMPLATE).dataobj, dtype=np.float32)
    whole *= 255 / whole.max()
    pictures, labels = [], []
    for axis in range(3):
        for flat in np.moveaxis(whole, axis, 0)[::2]:  # the next one looks nearly the same
            if (flat > 25).mean() > 0.05:
                spare = [_SIDE - side for side in flat.shape]
                pictures.append(np.pad(np.rot90(flat), [(each // 2, each - each // 2) for each in spare[::-1]]))
                labels.append(axis)
    return np.stack(pictures).astype(np.uint8), np.array(labels)


def _source(source: Path) -> Any:
    if source.name == SCANS:
        return scans()
    return digits(source.parent, MOST, 0, 10) if source.name == "mnist" else source


def measured(name: str, source: Path) -> dict[str, Any]:
    """Shift by stage, entropy of the source's classifier, and the depth profile of one data set."""
    backbone, store = load_backbone(name), Store()
    dataset = load_dataset(_source(source))
    features = extract(backbone, dataset, store, engine=Engine(backbone))
    pool = dataset.indices("train")
    heads = race(features, dataset.labels[pool], dataset.fold[pool], len(dataset.classes), pool, store=store)
    found = shift(backbone, dataset, features, store)
    return {
        "pictures": len(pool), "distance": found.distance, "stages": found.stages, "entropy": found.entropy,
        "profile": [score.accuracy for score in heads.profile],
    }  # fmt: skip


if __name__ == "__main__":
    backbone_by_backbone(__doc__, RESULTS, measured, {**PLACES, SCANS: SCANS})
