"""scikit-learn on features that timm computes in eager mode: the common recipe for a linear probe.

    python sklearn_features.py TREE WEIGHTS OUT.json

The strength is cross-validated over ten values, as `LogisticRegressionCV` does by default, on standardised features.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

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
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(net))

    def features(side: str) -> tuple[Any, Any]:
        pictures = ImageFolder(tree / side, transform)
        with torch.inference_mode():
            pairs = [(net(x), y) for x, y in torch.utils.data.DataLoader(pictures, 32, num_workers=2)]
        return torch.cat([x for x, _ in pairs]).numpy(), torch.cat([y for _, y in pairs]).numpy()

    x, y = features("train")
    extracted = time.monotonic() - began
    probe = make_pipeline(StandardScaler(), LogisticRegressionCV(max_iter=1000))
    probe.fit(x, y)
    trained = time.monotonic() - began
    accuracy = float(probe.score(*features("test")))
    record = {
        "accuracy": accuracy,
        "phases": {
            "imports": imported, "features": extracted - imported, "head": trained - extracted,
            "testing": time.monotonic() - began - trained,
        },
        "versions": {"torch": torch.__version__, "timm": timm.__version__, "scikit-learn": sklearn.__version__},
    }  # fmt: skip
    out.write_text(json.dumps(record), encoding="utf-8")


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:]))
