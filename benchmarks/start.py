"""Where the seconds before the first prediction go, with the network as it is written in the bundle, and built by its package's code.

Each run is a process of its own, the two in turns.

python benchmarks/start.py --picture ../shared/data/satellite/aGrass/a001.jpg
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np

from common import commit, keep, results

RESULTS = Path(__file__).parent / "results" / "start.json"
RUNS = 5
SCRIPT = """
import json, sys, time
stamps = {"python": time.time() - float(sys.argv[3])}
def stamp(name, since=[time.perf_counter()]):
    now = time.perf_counter()
    stamps[name], since[0] = now - since[0], now
from headstart import runtime
with runtime.importing():
    import torch
    stamp("torch")
    built = sys.argv[4] == "built"
    if built:
        import torch._dynamo  # torchvision and timm ask for it
        stamp("torch's compiler")
        import torchvision
        stamp("torchvision")
        import timm
        stamp("timm")
    from headstart import bundle, serve
    stamp("headstart")
model = bundle.load(sys.argv[1], trainable=built)
stamp("network built, cut and loaded" if built else "model read")
model.predict([sys.argv[2]])
stamp("first picture")
print(json.dumps(stamps))
"""


def main() -> None:
    """Time a model with a head of zeros, at the precision that is settled on here: it takes as long as any other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--picture", type=Path, required=True)
    given = parser.parse_args()
    from headstart.backbones.catalog import load_backbone
    from headstart.bundle import save
    from headstart.data.images import views_of
    from headstart.data.sources import open_bytes
    from headstart.features.engine import Engine
    from headstart.features.settle import transform_of
    from headstart.heads import Head
    from headstart.model import Model

    backbone = load_backbone("tf_efficientnet_lite0")
    last = len(backbone.stages) - 1
    head = Head("ridge", (last,), 0.0, np.zeros((backbone.widths[last], 2), np.float32), np.zeros(2, np.float32))
    engine = Engine(backbone)
    (seen,) = views_of(lambda: open_bytes(given.picture.read_bytes()), [transform_of(backbone)])
    engine.settle(seen)
    runs: dict[str, list[dict[str, float]]] = {"cases": [], "built": []}
    with tempfile.TemporaryDirectory() as name:
        model = Model(backbone, head, ("one", "two"), precision=engine.settled or "float32", exact=engine.exact)
        save(model, Path(name))
        for _ in range(RUNS + 1):  # the first reads everything from the disk
            for how, found in runs.items():
                command = [sys.executable, "-c", SCRIPT, name, str(given.picture), str(time.time()), how]
                found.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    record = results(RESULTS)
    for how, found in runs.items():
        record[how] = {phase: median(run[phase] for run in found[1:]) for phase in found[0]}
    record["commit"], record["way"] = commit(), str(engine.way)
    keep(record, RESULTS)
    print(json.dumps({how: record[how] for how in runs}, indent=1))


if __name__ == "__main__":
    main()
