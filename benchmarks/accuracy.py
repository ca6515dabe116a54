"""How right every contestant is: data sets × 5, 20 and all pictures a class × seeds, on the same splits from the same weights.

The test side is the one that Headstart seals for the seed, 600 pictures of it at most; training pictures are drawn from the rest,
class by class. `--tier quick` trains on 600 at most: Headstart and the linear probe on every set with three seeds; on three unlike
sets with one seed, what takes long where pictures are few and on one of them up to 600, what takes longest only with 5 a class; and
LP-FT on every set where pictures are few.
`--tier full` has everybody on everything, five seeds. The cheapest cases come first, round by round.

Where pictures are few, Headstart weighs what it expects of fine-tuning, and most of these sets taught it that. `--tier left-out` runs
it there once more, each set foretold by what the others taught. `--tier unseen` runs on the sets that unseen.py makes, which no choice
was ever made on, and keeps its results apart.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

import unseen
from common import SETS, commit, keep, results
from contest import MOBILE, Contestant, Ran, linked, ran
from headstart import runtime

RESULTS = Path(__file__).parent / "results" / "accuracy.json"
UNSEEN = RESULTS.with_name("accuracy_unseen.json")
PLACES = {**SETS, **unseen.SETS}
TESTED, QUICK = 600, 600  # pictures at most: tested, and trained on in the quick tier
READ_BY_ALL = (".jpg", ".jpeg", ".png", ".bmp")
LP_FT = "LP-FT, 10 and 5 epochs"
FOREIGN = "Headstart, default, foretold by other sets"
AUTOGLUON = "AutoGluon MultiModal, equal time"  # it needs other packages than the other peers

CONTESTANTS = {
    "linear probe, scikit-learn": Contestant(("sklearn_features.py",)),
    "Headstart, default": Contestant(()),
    "fastai, fine_tune(5)": Contestant(("fastai_fine_tune.py",)),
    "Keras guide, 20 and 10 epochs, MobileNetV2": Contestant(("keras_guide.py", "20", "10"), MOBILE),
    LP_FT: Contestant(("plain_lpft.py", "10", "5")),
    AUTOGLUON: Contestant(("autogluon_multimodal.py",), equal="Headstart, default"),
    "full fine-tuning, best of three rates": Contestant(("full_search.py",)),
    "BiT-HyperRule": Contestant(("bit_hyperrule.py",)),
    FOREIGN: Contestant(()),
}
CHEAP, SLOW, SLOWEST = (tuple(CONTESTANTS)[part] for part in (slice(2), slice(2, 6), slice(6, 8)))
TAUGHT = tuple(source for source in SETS if source != "groceries")
FEW = tuple(source for source in TAUGHT if source in ("flowers", "ants_bees", "blood"))  # with all of their pictures
UNLIKE = ("satellite", "signs", "flowers")
SIZES = ("5", "20", str(QUICK), "all")  # pictures a class; then pictures in all, each class its share


@dataclass(frozen=True)
class Round:
    """Contestants who meet on all of these sets and sizes, with one seed."""

    contestants: tuple[str, ...]
    sets: tuple[str, ...]
    sizes: tuple[str, ...]
    seed: int


TIERS = {
    "quick": (
        Round(CHEAP, tuple(SETS), SIZES[:3], 0), Round(SLOW, UNLIKE, SIZES[:2], 0), Round(SLOW, UNLIKE[:1], SIZES[2:3], 0),
        Round(SLOWEST, UNLIKE, SIZES[:1], 0), Round(CHEAP, tuple(SETS), SIZES[:3], 1), Round(CHEAP, tuple(SETS), SIZES[:3], 2),
        Round((LP_FT,), tuple(SETS), SIZES[:2], 0),
    ),
    "full": tuple(Round((*CHEAP, *SLOW, *SLOWEST), tuple(SETS), ("5", "20", "all"), seed) for seed in range(5)),
    "left-out": tuple(
        each for seed in range(3) for each in (Round((FOREIGN,), TAUGHT, SIZES[:2], seed), Round((FOREIGN,), FEW, SIZES[2:3], seed))
    ),
    "unseen": (
        Round(CHEAP, tuple(unseen.SETS), SIZES[:3], 0), Round((LP_FT,), tuple(unseen.SETS), SIZES[:2], 0),
        Round(CHEAP, tuple(unseen.SETS), SIZES[:3], 1),
    ),
}  # fmt: skip


def drawn(labels: np.ndarray, seed: int, *, each: int | None = None, most: int | None = None) -> np.ndarray:
    """Positions, ascending, of `each` pictures of every class at most, and of about `most` in all, of every class its share.

    With one seed a smaller draw lies within a larger one.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    chosen = []
    for label, count in enumerate(np.bincount(labels)):
        share = count if most is None else int(np.ceil(count * min(1.0, most / len(labels))))
        chosen.append(order[labels[order] == label][: share if each is None else min(share, each)])
    return np.sort(np.concatenate(chosen))


@dataclass(frozen=True, eq=False)
class Draw:
    """A case: indices into the data set of the pictures on either side."""

    size: str
    train: np.ndarray
    test: np.ndarray


@cache
def _dataset(source: Path, seed: int) -> Any:
    from headstart.features.store import Store
    from headstart.options import Options
    from headstart.request import audited

    return audited(source, Options(seed=seed), Store())


def draws(source: Path, sizes: Iterable[str], seed: int, capped: bool) -> list[Draw]:
    """One draw per size; of sizes that would train on the same pictures, one."""
    dataset = _dataset(source, seed)

    def side(split: str, **limits: int | None) -> np.ndarray:
        indices = dataset.indices(split)
        indices = indices[[Path(dataset.names[i]).suffix.lower() in READ_BY_ALL for i in indices]]
        return indices[drawn(dataset.labels[indices], seed, **limits)]

    test, found = side("test", most=TESTED), dict[tuple[int, ...], Draw]()
    for size in sizes:
        each = int(size) if size in SIZES[:2] else None
        train = side("train", each=each, most=QUICK if capped or size == str(QUICK) else None)
        if size == "all" and len(train) <= QUICK:
            size = str(QUICK)  # the same case in both tiers
        found[tuple(train.tolist())] = Draw(size, train, test)
    return list(found.values())


def row(done: Ran, tested: list[str]) -> dict[str, Any]:
    """What is kept of a contestant in a case; `right` has a 1 per right answer, in the order of the test paths."""
    right = "".join(str(int(done.answers.get(path) == path.split("/")[0])) for path in tested)
    kept = {
        key: done.row[key]
        for key in ("seconds", "first", "heads", "whole", "rate", "limit", "versions")
        if key in done.row
    }
    found = {"accuracy": right.count("1") / len(right), "right": right, **kept}
    if done.told:
        models = done.told["test"]["models"]
        found["models"] = {name: scores["accuracy"]["value"] for name, scores in models.items()}
        found["ece"] = models["final"]["ece"]["value"]
        found["over head"] = next(
            {key: each[key] for key in ("value", "low", "high", "p")}
            for each in done.told["test"]["differences"]
            if (each["a"], each["b"], each["metric"]) == ("final", "head", "accuracy")
        )
        found |= {key: done.told[key] for key in ("verdict", "overkill", "chosen")}
        found["rungs"] = [bool(rung["kept"]) for rung in done.told["rungs"]]
    return found


def suite(given: argparse.Namespace) -> None:
    """Run what is missing and write after every process; who ends with an error has failed in that case, and is not run again."""
    path = UNSEEN if given.tier == "unseen" else RESULTS
    record = results(path)
    with tempfile.TemporaryDirectory() as name:
        for title, source, draw, seed in _asked(given):
            key = f"{source}, size {draw.size}, seed {seed}"
            facts = {"set": source, "size": draw.size, "seed": seed}
            case = record["cases"].get(key, {**facts, "contestants": {}})
            if title in case["contestants"]:
                continue
            who = CONTESTANTS[title]
            if who.equal:
                seconds = case["contestants"].get(who.equal, {}).get("seconds")
                if seconds is None:
                    print(
                        f"{key}: {title}: left out, for {who.equal!r} has no time there yet; run it first", flush=True
                    )
                    continue
                who = replace(who, arguments=(*who.arguments, str(seconds)))
            python = given.autogluon_python if title == AUTOGLUON else given.peers_python
            if title == FOREIGN:
                who = replace(who, forecast=_without(source, Path(name)))
            place = (given.data / PLACES[source]).resolve()
            with tempfile.TemporaryDirectory(dir=name) as folder:
                tree = Path(folder) / "pictures"
                root = place.parent if place.is_file() else place
                case |= linked(_dataset(place, seed), root, {"train": draw.train, "test": draw.test}, tree)
                tested = sorted(path.relative_to(tree / "test").as_posix() for path in (tree / "test").rglob("*.*"))
                found = {"commit": commit(), "machine": runtime.machine(), "load": os.getloadavg()[0]}
                try:
                    found |= row(ran(who, title, tree, Path(folder), python), tested)
                except subprocess.CalledProcessError as error:
                    found["failed"] = error.returncode
            case["contestants"][title] = found
            record["cases"][key] = case
            keep(record, path)
            told = "failed" if "failed" in found else f"{100 * found['accuracy']:.1f} %, {found['seconds']:.0f} s"
            print(f"{key}: {title}: {told}", flush=True)


def _without(source: str, folder: Path) -> Path:
    """The forecast that comes with Headstart, but fitted to all data sets except one."""
    import forecast  # it tells of cases by their sizes here

    path = folder / f"without {source}.json"
    if not path.exists():
        taught = json.loads(forecast.RECORD.read_text(encoding="utf-8"))["cases"]
        path.write_text(json.dumps(forecast.learnt(taught, without=source)), encoding="utf-8")
    return path


def _asked(given: argparse.Namespace) -> Iterator[tuple[str, str, Draw, int]]:
    """Contestant, set, draw and seed of everything that the tier and the filters ask for, in order."""
    for each in TIERS[given.tier]:
        titles = [title for title in each.contestants if not given.only or title in given.only]
        if not titles or (given.seeds and each.seed not in given.seeds):
            continue
        sizes = [size for size in each.sizes if not given.sizes or size in given.sizes]
        sets = [source for source in each.sets if not given.sets or source in given.sets]
        # One draw of two sizes goes by one name in all rounds.
        every = each.sizes if given.tier == "full" else SIZES[:3]
        found = {source: _new((given.data / PLACES[source]).resolve(), every, each.seed, given.tier) for source in sets}
        for size, source in product(SIZES, sets):
            for draw in found[source]:
                if draw.size == size and size in sizes:
                    yield from ((title, source, draw, each.seed) for title in titles)


def _new(source: Path, sizes: tuple[str, ...], seed: int, tier: str) -> list[Draw]:
    """The draws of a seed; where the test set is given and all else is trained on, a further seed draws nothing new."""
    old = draws(source, sizes, 0, tier != "full") if seed else []
    return [
        draw
        for draw in draws(source, sizes, seed, tier != "full")
        if not any(np.array_equal(draw.train, each.train) and np.array_equal(draw.test, each.test) for each in old)
    ]
