"""Leaks and shortcuts that were planted, and how often they are suspected; how often they are where nothing was planted.

    python benchmarks/suspicions.py --data ../shared/data

150 pictures are drawn from a data set, as they are or with something planted: a third of them replaced by slightly changed re-shots of
others of their class (or all of them four shots of one thing), or all saved anew with a size, a border or a tint that tells the
class, or one class in another file format. Looked at by `headstart.diagnosis.leaks` and `shortcuts` after a race of heads; nothing is
fine-tuned.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import case_by_case
from headstart import runtime  # noqa: F401  (before torch, which then takes its patience with threads)
from headstart.backbones.catalog import load_backbone
from headstart.baselines import thumbnails
from headstart.data.dataset import Dataset
from headstart.data.images import decode
from headstart.data.load import load_dataset
from headstart.diagnosis.leaks import Neighbours, closeness, directions, leaks, overlaps, surer
from headstart.diagnosis.neighbours import nearest
from headstart.diagnosis.shortcuts import shortcuts
from headstart.features.engine import Engine
from headstart.features.extract import extract
from headstart.features.store import Store
from headstart.race import race

import numpy as np  # isort: skip
from PIL import Image  # isort: skip

RESULTS = Path(__file__).parent / "results" / "suspicions.json"
SPLITS, DRAWN, DRAWS, CLEAN, SIDE = 3, 150, 4, 10, 320
Plant = Callable[[Image.Image, int, int, np.random.Generator], Image.Image]  # picture, place of its class, classes


def reshot(picture: Image.Image, draw: np.random.Generator) -> Image.Image:
    """The same thing once more: turned, moved, in other light, with noise."""
    width, height = picture.size
    turned = picture.rotate(draw.uniform(3, 8) * draw.choice([-1, 1]), Image.Resampling.BICUBIC)
    share = draw.uniform(0.8, 0.93)
    left, top = (draw.uniform(0.05, 0.95) * (1 - share) * side for side in (width, height))
    moved = turned.resize(
        (width, height), Image.Resampling.BICUBIC, box=(left, top, left + share * width, top + share * height)
    )
    light = draw.uniform(0.8, 1.25) * np.exp(draw.normal(0, 0.03, 3))
    noise = draw.normal(0, 4, (height, width, 3))
    return Image.fromarray(np.clip(np.asarray(moved) * light + noise, 0, 255).astype(np.uint8))


def resized(picture: Image.Image, place: int, classes: int, draw: np.random.Generator) -> Image.Image:
    """Each class 15 % larger than the one before, whatever the shape."""
    ratio = 120 * 1.15**place / min(picture.size)
    return picture.resize((round(ratio * picture.width), round(ratio * picture.height)), Image.Resampling.BICUBIC)


def bordered(picture: Image.Image, place: int, classes: int, draw: np.random.Generator) -> Image.Image:
    """A border of 5 % of the shorter side, in a shade of grey for each class."""
    wide, pixels = max(1, round(0.05 * min(picture.size))), np.array(picture)
    shade = 255 * (place + 0.5) / classes
    for edge in (pixels[:wide], pixels[-wide:], pixels[:, :wide], pixels[:, -wide:]):
        edge[:] = shade
    return Image.fromarray(pixels)


def tinted(picture: Image.Image, place: int, classes: int, draw: np.random.Generator) -> Image.Image:
    """Light of another hue for each class."""
    hue = 1 + 0.5 * np.cos(2 * np.pi * (place / classes + np.arange(3) / 3))
    return Image.fromarray(np.clip(np.asarray(picture) * hue, 0, 255).astype(np.uint8))


def left(picture: Image.Image, place: int, classes: int, draw: np.random.Generator) -> Image.Image:
    """As it is: what tells the class is the file that it is saved in."""
    return picture


PLANTS: dict[str, Plant] = {"size": resized, "border": bordered, "colour": tinted, "format": left}


def small(whole: Dataset, index: int) -> Image.Image:
    """A picture of a data set, reduced to `SIDE`."""
    with whole.images.open(index) as opened:
        picture = decode(opened, SIDE)
    picture.thumbnail((SIDE, SIDE))
    return picture


def table(rows: list[tuple[str, str]], folder: Path) -> Path:
    """A table of paths and labels."""
    path = folder / "labels.csv"
    path.write_text("path,label\n" + "".join(f"{name},{label}\n" for name, label in rows), encoding="utf-8")
    return path


def planted(whole: Dataset, chosen: Any, what: str, draw: np.random.Generator, folder: Path) -> Path:
    """The pictures `chosen` (N,) of a data set with something planted, written to a folder."""
    classes, rows = len(whole.classes), []
    places = draw.permutation(classes)

    def written(picture: Image.Image, label: int) -> None:
        name = f"{len(rows)}.{'png' if what == 'format' and places[label] == 0 else 'jpg'}"
        picture.save(folder / name, quality=92)
        rows.append((name, whole.classes[label]))

    if what in PLANTS:
        for index in chosen:
            label = int(whole.labels[index])
            written(PLANTS[what](small(whole, index), int(places[label]), classes, draw), label)
        return table(rows, folder)
    kept = chosen[: round(len(chosen) * (2 / 3 if what == "re-shots" else 1 / 4))]
    for index in kept:
        written(small(whole, index), int(whole.labels[index]))
    again = draw.choice(kept, len(chosen) - len(kept)) if what == "re-shots" else np.repeat(kept, 3)
    for index in again:
        written(reshot(small(whole, index), draw), int(whole.labels[index]))
    return table(rows, folder)


def looked_at(dataset: Dataset, engine: Engine, store: Store) -> dict[str, Any]:
    """What is suspected of a data set, by what; how far the nearest stand apart, and how the nearest neighbour answers."""
    features = extract(engine.backbone, dataset, store, engine=engine)
    pool, labels = dataset.indices("train"), dataset.labels
    heads = race(features, labels[pool], dataset.fold[pool], len(dataset.classes), pool, store=store)
    near = Neighbours.of(dataset, heads, features)
    close, shared = closeness(near), overlaps(near, dataset, engine, store)
    found = [*leaks(dataset, surer(close, shared)), *shortcuts(dataset, heads, thumbnails(dataset, store))]
    assert dataset.audit is not None
    z = directions(features, heads.pool, heads.pool)
    fold, truth = dataset.fold[heads.pool], labels[heads.pool]
    guessed = truth[nearest(z, z, 1, fold, fold)[1][:, 0]]
    lead = (guessed == truth).astype(float) - (heads.best.logits.argmax(1) == truth)
    return {
        "suspected": [each.kind for each in found],
        "pairs": sum(each.total for each in found if each.kind == "near_copies"),
        "errors": close.errors,
        "times": close.times,
        "shared_errors": shared.errors,
        "shared_times": shared.times,
        "audited": sum(each.total for each in dataset.audit.findings if each.kind == "near_duplicates"),
        "head": heads.accuracy,
        "nearest_lead": float(lead.mean()),
        "nearest_lead_errors": float(lead.mean() / max(lead.std() / len(lead) ** 0.5, 1e-9)),
    }


def measured(source: Path, seed: int) -> dict[str, Any]:
    """All draws from one data set, and the whole of it with several splits."""
    whole, engine = load_dataset(source, seed=seed), Engine(load_backbone("tf_efficientnet_lite0"))
    splits = [load_dataset(source, seed=seed + number) for number in range(SPLITS)]
    result: dict[str, Any] = {"whole": [looked_at(each, engine, Store()) for each in splits], "clean": []}
    for number in range(CLEAN):
        with tempfile.TemporaryDirectory() as folder:
            draw = np.random.default_rng([seed, number])
            rows = [
                (str((source.parent if source.is_file() else source) / whole.names[i]), whole.classes[whole.labels[i]])
                for i in draw.permutation(len(whole))[:DRAWN]
            ]
            result["clean"].append(looked_at(load_dataset(table(rows, Path(folder)), seed=number), engine, Store()))
    few = 10 * len(whole.classes) <= DRAWN  # of many classes, a draw has too few pictures each to plant anything in
    for what in ("re-shots", "bursts", *PLANTS) if few else ():
        result[what] = with_a_plant(whole, engine, what, seed)
        print(source, what, [each["suspected"] for each in result[what]], flush=True)
    return result


def with_a_plant(whole: Dataset, engine: Engine, what: str, seed: int) -> list[dict[str, Any]]:
    """What is suspected of draws in which this was planted."""
    found = []
    for number in range(DRAWS):
        draw = np.random.default_rng([seed, number])
        with tempfile.TemporaryDirectory() as folder:
            path = planted(whole, draw.permutation(len(whole))[:DRAWN], what, draw, Path(folder))
            store = Store(Path(folder) / "store")  # what is planted here is never asked for again
            found.append(looked_at(load_dataset(path, seed=number), engine, store))
    return found


if __name__ == "__main__":
    case_by_case(__doc__, RESULTS, measured)
