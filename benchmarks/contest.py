"""What the suites that set Headstart beside other tools share: the same pictures, the same weights, a process for every contestant.

The peers live in an environment of their own: `pip install torch torchvision timm fastai scikit-learn tensorflow-cpu safetensors`,
and AutoGluon in another: `pip install autogluon.multimodal`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from csv import DictReader
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PEERS = Path(__file__).parent / "peers"
FORETOLD = Path(__file__).with_name("foretold.py")
PROOF = ("baselines", "evaluate", "diagnose", "report")
LITE, MOBILE = "tf_efficientnet_lite0", "mobilenetv2_100"


@dataclass(frozen=True)
class Contestant:
    """What is run: a script of benchmarks/peers with its arguments, or Headstart's options; `warm` after the run it names; for as
    many seconds, its last argument, as the contestant took who is named by `equal`.

    Headstart may use no network but the one whose `weights` all have; with "", those of its installation, as it does by default. It
    may have the forecast of a file in place of that which comes with it.
    """

    arguments: tuple[str, ...]
    weights: str = LITE
    runs: int = 1
    warm: str = ""
    equal: str = ""
    forecast: Path | None = None

    @property
    def is_peer(self) -> bool:
        return any(word.endswith(".py") for word in self.arguments[:1])


@dataclass(frozen=True)
class Ran:
    """One process: times, accuracy and phases; its answers by path below test/; and what Headstart tells in `metrics.json`."""

    row: dict[str, Any]
    answers: Mapping[str, str]
    told: Mapping[str, Any] = field(default_factory=dict)


def linked(dataset: Any, source: Path, sides: Mapping[str, Any], folder: Path) -> dict[str, int]:
    """A tree of links, a folder per side and class, to the pictures whose indices `sides` holds; how many lie on each side."""
    for side, indices in sides.items():
        for index in indices:
            path = Path(source, dataset.names[int(index)]).resolve()
            link = folder / side / dataset.classes[dataset.labels[index]] / f"{index:06d}{path.suffix}"
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path)
    return {side: len(indices) for side, indices in sides.items()}


def weights_of(name: str, folder: Path) -> Path:
    """The weights of a bundled network under their original names, without its classifier."""
    from safetensors.torch import save_file

    from headstart.backbones.catalog import load_backbone

    path = folder / f"{name}.safetensors"
    if not path.exists():
        save_file({key: value.contiguous() for key, value in load_backbone(name).state().items()}, path)
    return path


def timed(command: list[str], cache: Path, model: Path | None) -> tuple[float, float | None]:
    """Seconds until the process ended, and until `model` was there.

    Raises:
        CalledProcessError: where it ended with an error.
    """
    began, usable = time.monotonic(), None
    with subprocess.Popen(
        command, env={**os.environ, "HEADSTART_CACHE": str(cache)}, stdout=subprocess.DEVNULL
    ) as process:
        while process.poll() is None:
            if model is not None and usable is None and model.exists():
                usable = time.monotonic() - began
            time.sleep(0.02)
        whole = time.monotonic() - began
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return whole, usable


def ran(who: Contestant, name: str, tree: Path, work: Path, python: str) -> Ran:
    """One process: seconds to a usable model and in all, accuracy on the test pictures, and its own account of its phases."""
    if who.is_peer:
        out = work / "out.json"
        script = PEERS / who.arguments[0]
        command = [python, str(script), str(tree), str(weights_of(who.weights, work)), str(out), *who.arguments[1:]]
        whole, _ = timed(command, work, None)
        found = json.loads(out.read_text(encoding="utf-8"))
        answers = found.pop("answers")
        # What comes after the model is the testing alone.
        return Ran({"seconds": whole - found["phases"]["testing"], "whole": whole, **found}, answers)
    cache = work / f"cache of {who.warm or name} on {tree.name}"
    if not who.warm:
        shutil.rmtree(cache, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=work) as scratch:
        out = Path(scratch) / "run"
        called = ["-m", "headstart"] if who.forecast is None else ["-P", str(FORETOLD), str(who.forecast)]
        command = [sys.executable, *called, "fit", str(tree), "--out", str(out), *who.arguments]
        if who.weights:
            command += ["--backbone", who.weights, "--weights", str(weights_of(who.weights, work))]
        whole, usable = timed(command, cache, out / "model.json")
        found, plan = (json.loads((out / file).read_text(encoding="utf-8")) for file in ("metrics.json", "plan.json"))
        with (out / "predictions.csv").open(encoding="utf-8", newline="") as stream:
            answers = {row["path"].removeprefix("test/"): row["predicted"] for row in DictReader(stream)}
    seconds = found["seconds"]
    # Rungs were tried, or heads fitted to more views or on other networks: the first model was not the last. Where no rung was tried,
    # the last one was there before the plan.
    later = bool(found["rungs"]) or not who.weights or plan["evidence"]["views"] > 0
    after = PROOF if found["rungs"] else ("plan", "finetune", "unknown", *PROOF)
    row = {
        "seconds": whole - sum(seconds[phase] for phase in after) if later else usable,
        "first": usable,
        "heads": usable + seconds.get("backbones", 0.0) + seconds["views"],
        "whole": whole,
        "accuracy": found["test"]["models"]["final"]["accuracy"]["value"],
        "phases": seconds,
        "caching": sum(rung.get("caching_seconds", 0.0) for rung in found["rungs"]),
        "peak_memory_bytes": found["peak_memory_bytes"],
    }
    return Ran(row, answers, found)
