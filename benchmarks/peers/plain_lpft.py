"""What a careful person writes in plain PyTorch: linear probing, then fine-tuning the whole network (Kumar et al. 2022).

    python plain_lpft.py TREE WEIGHTS OUT.json [EPOCHS_FROZEN] [EPOCHS_TUNED]

timm's own transforms and network, channels_last, two decoding workers, AdamW and one cycle per phase. In the frozen phase the
body runs without gradients and in evaluation mode, under bfloat16 where the processor has it; its features are computed anew in
every epoch, because augmentation changes the pictures. With 0 tuned epochs it is the frozen phase alone.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

BACKBONE = "tf_efficientnet_lite0"
BATCH = 32


def main(tree: Path, weights: Path, out: Path, frozen: int = 10, tuned: int = 5) -> None:
    """Train, test, write."""
    began = time.monotonic()
    import timm
    import torch
    from safetensors.torch import load_file
    from torchvision.datasets import ImageFolder

    torch.manual_seed(0)
    imported = time.monotonic() - began
    net = timm.create_model(BACKBONE, pretrained=False, num_classes=0)
    net.load_state_dict(load_file(weights), strict=True)
    net = net.to(memory_format=torch.channels_last).eval()
    settings = timm.data.resolve_model_data_config(net)
    training = ImageFolder(tree / "train", timm.data.create_transform(**settings, is_training=True, auto_augment=None))
    testing = ImageFolder(tree / "test", timm.data.create_transform(**settings))
    head = torch.nn.Linear(net.num_features, len(training.classes))
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    fast = torch.autocast("cpu", torch.bfloat16, enabled="avx512_bf16" in flags or "amx_bf16" in flags)

    def batches(pictures: Any, shuffle: bool) -> Any:
        return torch.utils.data.DataLoader(pictures, BATCH, shuffle=shuffle, num_workers=2)

    def phase(epochs: int, groups: list[dict[str, Any]], body_trains: bool) -> None:
        steps = epochs * -(-len(training) // BATCH)
        optimizer = torch.optim.AdamW(groups, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, [g["lr"] for g in groups], total_steps=steps)
        for _ in range(epochs):
            for pictures, labels in batches(training, shuffle=True):
                pictures = pictures.to(memory_format=torch.channels_last)
                if body_trains:
                    features = net(pictures)
                else:
                    with torch.no_grad(), fast:
                        features = net(pictures).float()
                loss = torch.nn.functional.cross_entropy(head(features), labels)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                schedule.step()

    phase(frozen, [{"params": list(head.parameters()), "lr": 3e-3}], body_trains=False)
    probed = time.monotonic() - began
    if tuned:
        # Statistics stay those of the source: `eval` above holds for the normalisation also while its weights train.
        body = {"params": list(net.parameters()), "lr": 3e-4}
        phase(tuned, [body, {"params": list(head.parameters()), "lr": 1e-3}], body_trains=True)
    trained = time.monotonic() - began
    right = total = 0
    with torch.no_grad():
        for pictures, labels in batches(testing, shuffle=False):
            right += int((head(net(pictures.to(memory_format=torch.channels_last))).argmax(1) == labels).sum())
            total += len(labels)
    record = {
        "accuracy": right / total,
        "phases": {
            "imports": imported, "frozen": probed - imported, "tuned": trained - probed,
            "testing": time.monotonic() - began - trained,
        },
        "versions": {"torch": torch.__version__, "timm": timm.__version__},
    }  # fmt: skip
    out.write_text(json.dumps(record), encoding="utf-8")


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:4]), *(int(argument) for argument in sys.argv[4:6]))
