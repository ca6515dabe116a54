"""Suites that set Headstart beside other tools: same pictures, same split, same weights, same machine, in one run.

    python benchmarks/run.py --suite speed --data ../shared/data --peers-python /path/to/peers/bin/python

The suite lays out the pictures as train/ and test/ with a folder per class (links, nothing is copied), saves the weights as the
peers read them, and runs every contestant as a process of its own. Two times are taken, both from the start of the process,
imports included: until the model is there (the final one: Headstart saves one with a frozen head long before), and until the
process ends, which has tested the model by then. Peers live in
an environment of their own: `pip install torch torchvision timm fastai scikit-learn tensorflow-cpu safetensors`. What has been
measured is kept and not measured again; every contestant runs once before any runs twice.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from common import keep, results

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "speed.json"
PROOF = ("baselines", "evaluate", "report")
LITE, MOBILE = "tf_efficientnet_lite0", "mobilenetv2_100"


@dataclass(frozen=True)
class Contestant:
    """What is run: a script of benchmarks/peers with its arguments, or Headstart's options; `warm` after the run it names."""

    arguments: tuple[str, ...]
    weights: str = LITE
    runs: int = 1
    warm: str = ""

    @property
    def is_peer(self) -> bool:
        return any(word.endswith(".py") for word in self.arguments[:1])


CONTESTANTS = {
    "Headstart, head only": Contestant(("--plan", "head"), runs=3),
    "Headstart, head only, again": Contestant(("--plan", "head"), runs=3, warm="Headstart, head only"),
    "Headstart, head only, MobileNetV2": Contestant(("--plan", "head"), MOBILE, runs=3),
    "scikit-learn on timm features": Contestant(("sklearn_features.py",), runs=3),
    "plain PyTorch, 10 frozen epochs": Contestant(("plain_lpft.py", "10", "0")),
    "Keras guide, 20 frozen epochs, MobileNetV2": Contestant(("keras_guide.py", "20", "0"), MOBILE),
    "Headstart, default": Contestant((), runs=3),
    "Headstart, default, again": Contestant((), runs=3, warm="Headstart, default"),
    "plain PyTorch, 10 frozen epochs and 5 more": Contestant(("plain_lpft.py", "10", "5")),
    "fastai, fine_tune(5)": Contestant(("fastai_fine_tune.py",)),
}


def laid_out(source: Path, images: int, folder: Path) -> dict[str, int]:
    """A tree of links with at most `images` training pictures, drawn by Headstart's own split; how many lie on each side."""
    import numpy as np

    from headstart.data.load import load_dataset

    dataset = load_dataset(source)
    pool = dataset.indices("train")
    chosen = np.random.default_rng(0).permutation(pool)[:images]
    counts = {}
    for side, indices in (("train", chosen), ("test", dataset.indices("test"))):
        for index in indices:
            path = Path(source, dataset.names[int(index)]).resolve()
            link = folder / side / dataset.classes[dataset.labels[index]] / f"{index:06d}{path.suffix}"
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path)
        counts[side] = len(indices)
    return counts


def weights_of(name: str, folder: Path) -> Path:
    """The weights of a bundled network under their original names, without its classifier."""
    from safetensors.torch import save_file

    from headstart.backbones.catalog import load_backbone

    path = folder / f"{name}.safetensors"
    if not path.exists():
        save_file({key: value.contiguous() for key, value in load_backbone(name).state().items()}, path)
    return path


def timed(command: list[str], cache: Path, model: Path | None) -> tuple[float, float | None]:
    """Seconds until the process ended, and until `model` was there."""
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
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return whole, usable


def measured(who: Contestant, name: str, tree: Path, work: Path, python: str) -> dict[str, Any]:
    """One process: seconds to a usable model and in all, accuracy on the test pictures, and its own account of its phases."""
    if who.is_peer:
        out = work / "out.json"
        script = HERE / "peers" / who.arguments[0]
        command = [python, str(script), str(tree), str(weights_of(who.weights, work)), str(out), *who.arguments[1:]]
        whole, _ = timed(command, work, None)
        found = json.loads(out.read_text(encoding="utf-8"))
        # What comes after the model is the testing alone.
        return {"seconds": whole - found["phases"]["testing"], "whole": whole, **found}
    cache = work / f"cache of {who.warm or name} on {tree.name}"
    if not who.warm:
        shutil.rmtree(cache, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=work) as scratch:
        out = Path(scratch) / "run"
        command = [sys.executable, "-m", "headstart", "fit", str(tree), "--out", str(out), *who.arguments]
        command += ["--backbone", who.weights, "--weights", str(weights_of(who.weights, work))]
        whole, usable = timed(command, cache, out / "model.json")
        found = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    return {
        # A ladder was climbed: the first model was not the last.
        "seconds": whole - sum(found["seconds"][phase] for phase in PROOF) if found["rungs"] else usable,
        "first": usable,
        "whole": whole,
        "accuracy": found["test"]["models"]["final"]["accuracy"]["value"],
        "phases": found["seconds"],
        "peak_memory_bytes": found["peak_memory_bytes"],
    }


def speed(given: argparse.Namespace) -> None:
    """Run what is missing, a round of everybody at a time, and write after every process."""
    record = results(RESULTS)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        for source in given.sets:
            tree = work / source
            counts = laid_out((given.data / source).resolve(), given.images, tree)
            label = f"{source}, {counts['train']} training pictures"
            case = record["cases"].setdefault(label, {"set": source, **counts, "contestants": {}})
            for number in range(max(who.runs for who in CONTESTANTS.values())):
                for title, who in CONTESTANTS.items():
                    done = case["contestants"].setdefault(title, [])
                    if number >= who.runs or len(done) > number or (given.only and title not in given.only):
                        continue
                    done.append(measured(who, title, tree, work, given.peers_python))
                    keep(record, RESULTS)
                    last = done[-1]
                    print(
                        f"{source}: {title}: {last['seconds']:.1f} s to a usable model, {last['whole']:.1f} s in all, "
                        f"{100 * last['accuracy']:.1f} %",
                        flush=True,
                    )
            for title, done in case["contestants"].items():
                if done:
                    print(f"{source}: {title}: median {median(each['seconds'] for each in done):.1f} s", flush=True)


def main() -> None:
    """Run a suite."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", choices=["speed"], required=True)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--sets", nargs="+", default=["satellite"])
    parser.add_argument("--images", type=int, default=1260, help="training pictures at most")
    parser.add_argument("--peers-python", default=sys.executable, help="the Python that the peers are installed for")
    parser.add_argument("--only", nargs="+", choices=list(CONTESTANTS), help="only these contestants")
    speed(parser.parse_args())


if __name__ == "__main__":
    main()
