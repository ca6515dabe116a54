"""Where the seconds before the first prediction go, each run in a process of its own.

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
    import torch._dynamo  # torchvision and timm ask for it
    stamp("torch's compiler")
    import torchvision
    stamp("torchvision")
    import timm
    stamp("timm")
    from headstart import bundle, serve
    stamp("headstart")
model = bundle.load(sys.argv[1])
stamp("network built, cut and loaded")
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
    runs = []
    with tempfile.TemporaryDirectory() as name:
        model = Model(backbone, head, ("one", "two"), precision=engine.settled or "float32", exact=engine.exact)
        save(model, Path(name))
        for _ in range(RUNS + 1):  # the first reads everything from the disk
            command = [sys.executable, "-c", SCRIPT, name, str(given.picture), str(time.time())]
            runs.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    record = results(RESULTS)
    record["cases"] = {phase: median(run[phase] for run in runs[1:]) for phase in runs[0]}
    record["commit"], record["way"] = commit(), str(engine.way)
    keep(record, RESULTS)
    print(json.dumps(record["cases"], indent=1))


if __name__ == "__main__":
    main()
