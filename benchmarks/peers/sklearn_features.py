"""scikit-learn on features that timm computes in eager mode: the common recipe for a linear probe.

    python sklearn_features.py TREE WEIGHTS OUT.json

The strength is cross-validated over ten values, as `LogisticRegressionCV` does by default, on standardised features. PEER_WORKERS=N in
the environment is for benchmarks/fairness.py.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import outcome

BACKBONE = "tf_efficientnet_lite0"


def main(tree: Path, weights: Path, out: Path) -> None:
    """Train, test, write."""
    began = time.monotonic()
    import sklearn
    import timm
    import torch
    from safetensors.torch import load_file
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from torchvision.datasets import ImageFolder

    imported = time.monotonic() - began
    net = timm.create_model(BACKBONE, pretrained=False, num_classes=0)
    net.load_state_dict(load_file(weights), strict=True)
    net.eval()
    workers = int(os.environ.get("PEER_WORKERS") or 2)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(net))

    def features(pictures: Any) -> Any:
        with torch.inference_mode():
            return torch.cat(
                [net(x) for x, _ in torch.utils.data.DataLoader(pictures, 32, num_workers=workers)]
            ).numpy()

    training, testing = (ImageFolder(tree / side, transform) for side in ("train", "test"))
    x, y = features(training), training.targets
    extracted = time.monotonic() - began
    probe = make_pipeline(StandardScaler(), LogisticRegressionCV(max_iter=1000))
    probe.fit(x, y)
    trained = time.monotonic() - began
    answers = [training.classes[i] for i in probe.predict(features(testing)).tolist()]
    phases = {
        "imports": imported, "features": extracted - imported, "head": trained - extracted,
        "testing": time.monotonic() - began - trained,
    }  # fmt: skip
    versions = {"torch": torch.__version__, "timm": timm.__version__, "scikit-learn": sklearn.__version__}
    paths, laps = [path for path, _ in testing.samples], [phases["features"]]
    outcome.write(out, tree, paths, answers, phases=phases, versions=versions, laps=laps)


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:]))
