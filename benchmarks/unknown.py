"""Pictures of none of the classes: how many are told as unknown where 5 % of known ones may be lost, by score.

    python benchmarks/unknown.py --data ../shared/data --seeds 0 1

One class at a time, of up to three, is left out of a data set. The heads race on the rest, the threshold of every score is taken from
its values out of fold, and three sorts of pictures are then judged: sealed test pictures of the other classes (known ones, lost where
they are called unknown), all pictures of the class that was left out, and 40 pictures of each other data set (far ones).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from common import SETS, case_by_case
from headstart import runtime  # noqa: F401  (before torch, which then takes its patience with threads)
from headstart.backbones.catalog import load_backbone
from headstart.data.dataset import Dataset
from headstart.data.load import load_dataset
from headstart.features.engine import Engine
from headstart.features.extract import Features, extract
from headstart.features.store import Store
from headstart.race import race
from headstart.solvers import principal_axes
from headstart.tasks.classification import fit_temperature, softmax
from headstart.unknown import LOST, fit_unknown, looked_at
from headstart.winner import fit_winner

import numpy as np  # isort: skip
from scipy.spatial.distance import cdist  # isort: skip
from scipy.special import logsumexp  # isort: skip
from sklearn.covariance import LedoitWolf  # isort: skip
from sklearn.metrics import roc_auc_score  # isort: skip

RESULTS = Path(__file__).parent / "results" / "unknown.json"
CLASSES, FAR = 3, 40
Array = np.ndarray[Any, Any]


def by_logits(logits: Array) -> dict[str, Array]:
    """Scores that need calibrated logits (N, K) alone; the larger, the stranger."""
    top = np.sort(logits, axis=1)
    return {
        "largest probability": -softmax(logits).max(1),
        "largest logit": -logits.max(1),
        "energy": -logsumexp(logits, axis=1),
        "margin": top[:, -2] - top[:, -1],
    }


def by_features(rows: Array, labels: Array, asked: Mapping[str, Array]) -> dict[str, dict[str, Array]]:
    """Scores of last-stage features `asked` (M, D) beside those of known pictures `rows` (N, D): by sort of picture, by score."""
    classes, together, axes = _distances(rows, labels), _distances(rows, np.zeros_like(labels)), principal_axes(rows)
    mean, scale = axes.mean.numpy(), axes.scale.numpy()
    known = (rows - mean) / scale
    near = known / np.linalg.norm(known, axis=1, keepdims=True)
    share = np.cumsum(axes.power.numpy()[::-1]) / axes.power.sum().item()
    inside = known.T @ (axes.z.numpy() / axes.power.numpy() ** 0.5)[:, ::-1][:, : int(np.searchsorted(share, 0.9)) + 1]
    directions = np.linalg.qr(inside)[0]
    found = {}
    for sort, given in asked.items():
        each = (given - mean) / scale
        apart = classes(given)
        found[sort] = {
            "Mahalanobis distance": apart,
            "relative Mahalanobis distance": apart - together(given),
            "nearest neighbour": -(each / np.linalg.norm(each, axis=1, keepdims=True) @ near.T).max(1),
            "outside the principal subspace": np.linalg.norm(each - each @ directions @ directions.T, axis=1),
        }
    return found


def _distances(rows: Array, labels: Array) -> Callable[[Array], Array]:
    """Squared Mahalanobis distance from the nearest class, with one covariance for all (Lee et al. 2018)."""
    centres = np.stack([rows[labels == label].mean(0) for label in np.unique(labels)])
    shrunk = LedoitWolf(assume_centered=True).fit(rows - centres[np.unique(labels, return_inverse=True)[1]])
    whitening = np.linalg.cholesky(shrunk.precision_)
    near = centres @ whitening
    return lambda asked: cdist(asked @ whitening, near, "sqeuclidean").min(1)


@cache
def everything(root: Path) -> tuple[Engine, dict[str, tuple[Dataset, Features]]]:
    """Every data set with its features, as split by seed 0: its pictures serve as far ones for the others."""
    engine = Engine(load_backbone("tf_efficientnet_lite0"))
    sets = {name: load_dataset(root / place) for name, place in SETS.items()}
    return engine, {name: (each, extract(engine.backbone, each, Store(), engine=engine)) for name, each in sets.items()}


def far_ones(root: Path, name: str) -> Callable[[tuple[int, ...]], Array]:
    """Features of pictures of the other data sets at the stages that are asked for."""
    draw = [
        (features, np.random.default_rng(0).permutation(len(features))[:FAR])
        for other, (_, features) in everything(root)[1].items()
        if other != name
    ]
    return lambda taps: np.concatenate([features.stages(taps, chosen) for features, chosen in draw])


def judged(
    dataset: Dataset, features: Features, far: Callable[[tuple[int, ...]], Array], out: int | None
) -> dict[str, Any]:
    """All scores, with the class `out` left out of training; None leaves out none."""
    labels, store = dataset.labels, Store()
    pool, test = (side[labels[side] != out] for side in (dataset.indices("train"), dataset.indices("test")))
    kept = [label for label in range(len(dataset.classes)) if label != out]
    given, folds = np.searchsorted(kept, labels[pool]), dataset.fold[pool]
    heads = race(features, given, folds, len(kept), pool, store=store)
    head = fit_winner(heads.best, features, given, len(kept), pool, store)
    heat = fit_temperature(heads.best.logits, given)
    depth = len(features.own)
    last = (depth - 1,)
    left = np.flatnonzero(labels == out)
    logits = {
        "held": heads.best.logits / heat, "known": head.answers(features, test) / heat,
        "left out": head.answers(features, left) / heat, "far": head.logits(far(head.taps)) / heat,
    }  # fmt: skip
    scores = {sort: by_logits(each.astype(np.float64)) for sort, each in logits.items()}
    rows = features.stages(last, pool)
    asked = {"known": features.stages(last, test), "left out": features.stages(last, left), "far": far(last)}
    for sort, found in by_features(rows, given, asked).items():
        scores[sort] |= found
    apart = [
        (folds == fold, by_features(rows[folds != fold], given[folds != fold], {"": rows[folds == fold]})[""])
        for fold in np.unique(folds)
    ]
    for name in apart[0][1]:
        scores["held"][name] = np.empty(len(pool))
        for here, found in apart:
            scores["held"][name][here] = found[name]
    for name, untouched in (("Headstart", depth), ("Headstart, where two stages are trained", depth - 2)):
        taps = looked_at([range(untouched)])
        stages = [features.stages((tap,), pool) for tap in taps]
        learnt = fit_unknown(taps, stages, folds, stages, folds, logits["held"], given)
        assert learnt is not None
        for sort, each in (("known", test), ("left out", left)):
            scores[sort][name] = learnt.strangeness([features.stages((tap,), each) for tap in taps], logits[sort])
        scores["far"][name] = learnt.strangeness([far((tap,)) for tap in taps], logits["far"])
        scores["held"][name] = learnt.held
    return {name: _told({sort: scores[sort][name] for sort in scores}) for name in scores["known"]}


def _told(score: Mapping[str, Array]) -> dict[str, float | None]:
    """Shares of each sort above the threshold, and the area under the curve between known pictures and those left out."""
    held = np.sort(score["held"])
    threshold = held[int(np.ceil((len(held) + 1) * (1 - LOST))) - 1]
    known, left = score["known"], score["left out"]
    truth = np.repeat([0, 1], [len(known), len(left)])
    return {
        "lost": float((known > threshold).mean()),
        "far": float((score["far"] > threshold).mean()),
        "left_out": float((left > threshold).mean()) if len(left) else None,
        "auroc": float(roc_auc_score(truth, np.concatenate([known, left]))) if len(left) else None,
    }


def measured(source: Path, seed: int) -> dict[str, Any]:
    """One data set: with all classes, and with each of up to three left out."""
    name = next(name for name, place in SETS.items() if source.as_posix().endswith(f"/{place}"))
    root = Path(source.as_posix().removesuffix(SETS[name]))
    engine, dataset = everything(root)[0], load_dataset(source, seed=seed)
    features, far = extract(engine.backbone, dataset, Store(), engine=engine), far_ones(root, name)
    pool, counts = dataset.indices("train"), dataset.counts("train")
    large = [int(label) for label in np.argsort(-counts, kind="stable") if counts[label] >= 10]
    if len(large) > CLASSES:
        large = sorted(np.random.default_rng(seed).permutation(large)[:CLASSES].tolist())
    row = {
        "pictures": len(pool), "tested": len(dataset.indices("test")), "classes": len(dataset.classes),
        "all_taught": judged(dataset, features, far, None),
        "left_out": {dataset.classes[label]: judged(dataset, features, far, label) for label in (large if len(counts) > 2 else [])},
    }  # fmt: skip
    print(source, seed, row["all_taught"]["Headstart"], flush=True)
    return row


if __name__ == "__main__":
    case_by_case(__doc__, RESULTS, measured)
