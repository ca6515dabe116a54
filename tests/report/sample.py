"""A made-up run for the report's tests: the numbers are drawn, the records are the real ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np
from PIL import Image

from headstart.data.audit import Audit, ClassCount, Finding
from headstart.diagnosis.growth import Foretold, Growth
from headstart.evaluate import evaluate
from headstart.report.report import (
    CurvePoint,
    HeadRow,
    Mistake,
    Pair,
    ReportData,
    RungRow,
    StageRow,
    thumbnail,
)
from headstart.tasks.classification import softmax
from headstart.verdict import decide_verdict

SIGNS = ("daisy", "dandelion", "roses", "sunflowers", "tulips", "white waterlily", "wild bergamot")


@cache
def picture(seed: int) -> bytes:
    """A smooth coloured pattern."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 255, (5, 5, 3), dtype=np.uint8)
    return thumbnail(Image.fromarray(coarse).resize((160, 120), Image.Resampling.BICUBIC))


def curve(seed: int, epochs: int = 8) -> list[CurvePoint]:
    rng, points = np.random.default_rng(seed), []
    for epoch in range(1, epochs + 1):
        part = epoch / epochs
        noise = rng.normal(0, 0.006)
        points.append(
            CurvePoint(epoch, 1.1 - 0.7 * part + noise, 0.62 - 0.24 * part + 2 * noise, 0.9 + 0.05 * part - noise)
        )
    return points


def sample(names: Sequence[str] = SIGNS, images: int = 420, *, repeats: int = 1) -> ReportData:
    """A report's data on `names` classes and `images` test images."""
    rng, count = np.random.default_rng(0), len(names)
    labels = np.tile(rng.integers(0, count, images), repeats)
    strengths = {"final": 4.4, "head": 3.9, "last_stage_head": 3.7, "scratch_cnn": 2.6, "pixels": 1.2}
    noise = rng.normal(size=(len(labels), count))
    beliefs = {
        name: softmax(3 * (noise + 0.7 * rng.normal(size=noise.shape) + pull * np.eye(count)[labels]))
        for name, pull in strengths.items()
    }
    beliefs["majority"] = np.tile(np.bincount(labels, minlength=count) / len(labels), (len(labels), 1))
    test = evaluate(
        labels,
        beliefs,
        uncalibrated={"final": softmax(3 * np.log(beliefs["final"] + 1e-9))},
        classes=names,
        resamples=300,
        repeats=repeats,
    )
    per_class = [(30 + 17 * (k % 5), 10 + k % 7) for k in range(count)]
    stages = ("conv_stem", *(f"blocks.{k}" for k in range(7)), "conv_head")
    return ReportData(
        title="photos/flowers",
        backbone="tf_efficientnet_lite0",
        audit=_audit(names, per_class),
        verdict=decide_verdict(test),
        test=test,
        stages=[
            StageRow(
                name,
                900 * 3**k if k < 7 else 500_000 * k,
                40_000_000 + 3_000_000 * k,
                k < 6,
                0.42 + 0.5 * (1 - 0.6**k),
                0.012,
            )
            for k, name in enumerate(stages)
        ],
        heads=[
            HeadRow("logistic", "1–9", 0.943, 0.008, 0.184, 1e-2, True),
            HeadRow("logistic", "9", 0.926, 0.009, 0.231, 1e-2, False),
            HeadRow("ridge", "8", 0.921, 0.009, 0.312, 1e-1, False),
            HeadRow("centroid", "9", 0.874, 0.012, 0.420, 1.0, False),
        ],
        rungs=[
            RungRow(
                "Rung 1",
                "blocks.5",
                8,
                3e-4,
                "75 % of the forward pass stays frozen: computed once",
                0.962,
                0.019,
                0.006,
                True,
                [curve(1), curve(2), curve(3)],
            ),
            RungRow(
                "Rung 2",
                "blocks.3",
                8,
                3e-4,
                "one step deeper, 45 % stays frozen",
                0.963,
                0.001,
                0.004,
                False,
                [curve(4)],
            ),
            RungRow("Rung 3", "conv_stem", 6, 1e-4, "all stages; the time was used up"),
        ],
        plan_reasons=[
            "the head on frozen features reaches 94.3 ± 0.8 % out of fold (logistic on all stages)",
            "rung 2 gained 0.1 ± 0.4 points, less than its standard error: left out",
        ],
        thumbnails=[(name, [picture(10 * k + i) for i in range(5)]) for k, name in enumerate(names[:12])],
        mistakes=[
            Mistake(
                f"{names[k % count]}/IMG_{2040 + k}.jpg",
                names[k % count],
                names[(k + 1) % count],
                0.99 - 0.02 * k,
                picture(900 + k),
            )
            for k in range(14)
        ],
        doubts=[
            Mistake(f"{names[k]}/IMG_{4100 + k}.jpg", names[k], names[k + 1], 0.97 - 0.1 * k, picture(700 + k))
            for k in range(min(3, count - 1))
        ],
        doubtful=(17, 6, 640),
        pairs=[
            Pair((f"roses/s{k}.jpg", f"roses/t{k}.jpg"), ("test", "train"), (picture(500 + k), picture(500 + k)))
            for k in range(3)
        ],
        paired=31,
        growth=Growth(
            measured=((160, 0.881), (320, 0.914), (480, 0.931), (640, 0.943)),
            foretold=(
                Foretold(1.0, 640, 0.943, 0.925, 0.958),
                Foretold(2**0.5, 905, 0.95, 0.932, 0.965),
                Foretold(2.0, 1280, 0.956, 0.937, 0.971),
                Foretold(2**1.5, 1810, 0.962, 0.942, 0.976),
                Foretold(4.0, 2560, 0.966, 0.946, 0.98),
            ),
        ),
        findings=[
            Finding(
                kind="near_copies",
                severity="warning",
                message="31 of 84 test pictures lie far nearer to one training picture than to the rest.",
                next_step="Look at the pairs, and name their scene in the 'group' column.",
                items=tuple(f"roses/s{k}.jpg ~ roses/t{k}.jpg" for k in range(31)),
                total=31,
            ),
            Finding(
                kind="drift", severity="note", message="Fine-tuning moved the features.", next_step="Nothing to do."
            ),
        ],
        seconds={
            "total": 311.0,
            "audit": 3.2,
            "extract": 21.5,
            "head": 6.4,
            "finetune": 171.0,
            "baselines": 98.0,
            "evaluate": 6.1,
            "report": 0.4,
        },
        peak_memory_bytes=1_320_000_000,
        versions={"python": "3.12.3", "headstart": "0.1.0", "torch": "2.15.0", "timm": "1.0.31"},
        command="headstart fit photos/flowers --out runs/flowers --seed 0",
        notes=["Features were read from the store: no pass through the backbone was needed."],
    )


def _audit(names: Sequence[str], per_class: Sequence[tuple[int, int]]) -> Audit:
    used = sum(train + test for train, test in per_class)
    return Audit(
        source="photos/flowers",
        layout="folder",
        images=used + 3,
        usable=used,
        classes=tuple(
            ClassCount(name=name, images=train + test, train=train, val=0, test=test)
            for name, (train, test) in zip(names, per_class, strict=True)
        ),
        splits={"train": sum(t for t, _ in per_class), "test": sum(t for _, t in per_class)},
        folds=5,
        ignored={"hidden": 1},
        modes={"RGB": used},
        formats={"JPEG": used},
        sizes={"smallest": (180, 180), "median": (320, 240), "largest": (1024, 768)},
        findings=(
            Finding(
                kind="unreadable",
                severity="warning",
                message="2 pictures of 640 cannot be read. The first: roses/x.jpg: truncated",
                next_step="They are skipped. Repair them to use them.",
                items=("roses/x.jpg: truncated", "tulips/y.png: not an image"),
                total=2,
            ),
            Finding(
                kind="near",
                severity="note",
                message="14 near-duplicates in 6 groups; each group is on one side of every split.",
                items=tuple(f"roses/r{k}.jpg" for k in range(14)),
                total=90,
            ),
        ),
    )


def renamed(data: ReportData, path: str) -> ReportData:
    """The same run, every mistake in a file of this name."""
    return replace(data, mistakes=[replace(mistake, name=path) for mistake in data.mistakes])
