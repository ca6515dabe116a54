"""Whether the peers of the speed suite run under the settings that they like best: seconds of a frozen epoch, setting by setting.

    python benchmarks/fairness.py --data ../shared/data --peers-python /path/to/peers/bin/python

Workers that decode, threads of torch, threads that sleep soon where they would spin, as Headstart's do, bfloat16, and the backend of
Keras. Every run is a process of the peer's own script, which notes how long its epochs take; the settings take turns. Keras decodes
and builds its graph in the first epoch and keeps the pictures: its third epoch is the one that counts. Of scikit-learn's recipe it is
the one pass that computes features.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from cells import headed
from common import SETS, commit, keep, results
from contest import MOBILE, Contestant, linked, weights_of
from contest import PEERS as SCRIPTS

RESULTS = Path(__file__).parent / "results" / "fairness.json"
TESTED = 32  # no answer counts here, but a peer gives some

PEERS = {
    "fastai": Contestant(("fastai_fine_tune.py", "0")),
    "plain PyTorch": Contestant(("plain_lpft.py", "1", "0")),
    "Keras guide": Contestant(("keras_guide.py", "3", "0"), MOBILE),
    "scikit-learn": Contestant(("sklearn_features.py",)),
}
Environment = Mapping[str, str]
ONE: Environment = {"OMP_NUM_THREADS": "1"}
ITS_OWN: Environment = {"PEER_WORKERS": ""}  # fastai chooses: as many as cores
SLEEPY: Environment = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "4000"}


def with_threads(settings: Mapping[str, Environment]) -> dict[str, Environment]:
    """The settings with all threads of torch and with one."""
    return {**settings, **{f"{name}, one thread": {**given, **ONE} for name, given in settings.items()}}


def workers(*counts: int) -> dict[str, Environment]:
    """So many processes that decode."""
    return {f"{count} worker{'s' * (count != 1)}": {"PEER_WORKERS": str(count)} for count in counts}


# The first of each is what the speed suite gives.
SETTINGS: dict[str, dict[str, Environment]] = {
    "fastai": {
        **with_threads({"0 workers": {}, "as many workers as cores": ITS_OWN, **workers(1, 4)}),
        "as many workers as cores, threads that sleep soon": {**ITS_OWN, **SLEEPY},
    },
    "plain PyTorch": {
        **with_threads({"2 workers": {}, **workers(0, 4)}),
        "2 workers, threads that sleep soon": SLEEPY,
        "2 workers, float32": {"PEER_BFLOAT16": "0"},
    },
    "Keras guide": {"TensorFlow": {"KERAS_BACKEND": "tensorflow"}, "PyTorch": {"KERAS_BACKEND": "torch"}},
    "scikit-learn": {
        **with_threads({"2 workers": {}, **workers(0, 4)}),
        "2 workers, threads that sleep soon": SLEEPY,
    },
}


def laid_out(source: Path, images: int, folder: Path) -> dict[str, int]:
    """A tree of links with at most `images` training pictures and `TESTED` others; how many lie on each side."""
    import numpy as np

    from headstart.data.load import load_dataset

    dataset, rng = load_dataset(source), np.random.default_rng(0)
    most = {"train": images, "test": TESTED}
    sides = {side: rng.permutation(dataset.indices(side))[:count] for side, count in most.items()}
    return linked(dataset, source, sides, folder)


def measured(who: Contestant, given: Environment, tree: Path, work: Path, python: str) -> dict[str, Any]:
    """What a peer tells of itself after one process in the environment that is `given`."""
    out = work / "out.json"
    command = [python, str(SCRIPTS / who.arguments[0]), str(tree), str(weights_of(who.weights, work)), str(out)]
    subprocess.run([*command, *who.arguments[1:]], env={**os.environ, **given}, stdout=subprocess.DEVNULL, check=True)
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    del found["answers"]
    return found


def by_setting(cases: Mapping[str, Any]) -> list[str]:
    """A row per peer and setting: medians over the rounds, and the last epoch against that of the setting in the speed suite."""
    rows = headed(
        "| peer | setting | rounds | s for imports | s for the first epoch | s for the last epoch | least to most | "
        "× as in the speed suite |"
    )
    for peer, settings in SETTINGS.items():
        base = None
        for setting in settings:
            those = [case for case in cases.values() if (case["peer"], case["setting"]) == (peer, setting)]
            if not those:
                continue
            imports, first = median(c["phases"]["imports"] for c in those), median(c["laps"][0] for c in those)
            last = sorted(c["laps"][-1] for c in those)
            base = base or median(last)
            rows.append(
                f"| {peer} | {setting} | {len(those)} | {imports:.1f} | {first:.1f} | {median(last):.1f} | "
                f"{last[0]:.1f} to {last[-1]:.1f} | {median(last) / base:.2f} |"
            )
    return rows


def main() -> None:
    """Run what the results do not hold yet, a round of every setting at a time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--set", default="satellite", choices=list(SETS))
    parser.add_argument("--peers-python", required=True, help="the Python that the peers are installed for")
    parser.add_argument("--peers", nargs="+", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--images", type=int, default=300, help="training pictures at most")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    record = results(given.out)
    turns = [(turn, peer, name) for turn in range(given.rounds) for peer in given.peers for name in SETTINGS[peer]]
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        counts = laid_out((given.data / SETS[given.set]).resolve(), given.images, work / "tree")
        for turn, peer, setting in turns:
            key = f"{given.set}, {counts['train']} training pictures, {peer}, {setting}, round {turn + 1}"
            if key in record["cases"]:
                continue
            facts = {"peer": peer, "setting": setting, "commit": commit(), "load": os.getloadavg()[0], **counts}
            found = measured(PEERS[peer], SETTINGS[peer][setting], work / "tree", work, given.peers_python)
            record["cases"][key] = {**facts, **found}
            keep(record, given.out)
            print(key, [round(lap, 1) for lap in found["laps"]], flush=True)
    print(*by_setting(record["cases"]), sep="\n")


if __name__ == "__main__":
    main()
