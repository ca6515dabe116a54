"""What the benchmarks share: where the data sets lie, and results that accumulate case by case."""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

# Place of each data set below --data.
SETS = {
    "flowers": "flowers", "ants_bees": "ants_bees", "blood": "blood/labels.csv", "satellite": "satellite", "signs": "signs",
    "groceries": "groceries", "steel": "steel",
}  # fmt: skip
PLACES = {**SETS, "mnist": "mnist"}  # glyphs, and 60,000 of them: for where that is wanted
FEW_CLASSES = [name for name in SETS if name != "groceries"]  # its 81 classes leave a handful of pictures each


def results(path: Path) -> dict[str, Any]:
    """The record in a results file with the present environment; a new one where there is none."""
    from headstart import runtime

    record = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"cases": {}}
    return {**record, "environment": runtime.environment()}


def keep(record: dict[str, Any], path: Path) -> None:
    """Write a record; an interruption leaves the one before."""
    path.parent.mkdir(exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    part.replace(path)


def commit() -> str:
    """The commit that is measured; cases of different commits may stand side by side."""

    def git(*words: str) -> str:
        asked = ["git", "-C", str(Path(__file__).parents[1]), *words]
        return subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()

    return git("describe", "--always") + "-dirty" * bool(git("status", "--porcelain", "--", "src"))


def case_by_case(about: str | None, path: Path, measured: Callable[[Path, int], Any]) -> None:
    """Run `measured(source, seed)` on the data sets and seeds that the command line asks for and the results do not hold yet."""
    parser = _asking(about, SETS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument(
        "--into", default=path.stem, help="the results file, without .json; another for another processor"
    )
    given = parser.parse_args()
    seed_by_seed(path.with_name(f"{given.into}.json"), measured, given.data, given.sets, given.seeds)


def seed_by_seed(
    path: Path, measured: Callable[[Path, int], Any], data: Path, sets: Iterable[str], seeds: Iterable[int]
) -> None:
    """The same of these data sets and seeds."""
    todo = [(f"{name} seed {seed}", data / PLACES[name], seed) for seed in seeds for name in sets]
    _fill(path, {case: partial(measured, source, seed) for case, source, seed in todo})


def backbone_by_backbone(
    about: str | None, path: Path, measured: Callable[[str, Path], Any], sets: Mapping[str, str] = SETS, here: str = ""
) -> None:
    """Run `measured(backbone, source)` on the backbones and data sets that are asked for and the results do not hold yet; with `here`,
    cases are those of a machine."""
    parser = _asking(about, sets)
    parser.add_argument("--backbones", nargs="+", default=["tf_efficientnet_lite0", "mobilenetv2_100"])
    given = parser.parse_args()
    todo = [
        (f"{name} on {chosen}{f', {here}' * bool(here)}", name, given.data / sets[chosen])
        for name in given.backbones
        for chosen in given.sets
    ]
    _fill(path, {case: partial(measured, name, source) for case, name, source in todo})


def _asking(about: str | None, sets: Iterable[str]) -> argparse.ArgumentParser:
    sets = list(sets)
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--sets", nargs="+", default=sets, choices=sets)
    return parser


def _fill(path: Path, cases: Mapping[str, Callable[[], Any]]) -> None:
    """Measure the cases that the results do not hold yet, and keep each at once."""
    record = results(path)
    for case, measured in cases.items():
        if case not in record["cases"]:
            record["cases"][case] = measured()
            record.setdefault("commits", {})[case] = commit()
            keep(record, path)
