"""What a careful person writes in plain PyTorch: linear probing, then fine-tuning the whole network (Kumar et al. 2022).

    python plain_lpft.py TREE WEIGHTS OUT.json [EPOCHS_FROZEN] [EPOCHS_TUNED]

timm's own transforms and network, channels_last, two decoding workers, AdamW and one cycle per phase. In the frozen phase the
body runs without gradients and in evaluation mode, under bfloat16 where the processor has it; its features are computed anew in
every epoch, because augmentation changes the pictures. With 0 tuned epochs it is the frozen phase alone.
PEER_WORKERS=N and PEER_BFLOAT16=0 in the environment are for benchmarks/fairness.py.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import outcome


def main(tree: Path, weights: Path, out: Path, frozen: int = 10, tuned: int = 5) -> None:
    """Train, test, write."""
    began = time.monotonic()
    import timm
    import torch
    from pytorch import BATCH, batches, network, tested, transform
    from torchvision.datasets import ImageFolder

    torch.manual_seed(0)
    imported = time.monotonic() - began
    net = network(weights)
    training = ImageFolder(tree / "train", transform(net, training=True))
    head = torch.nn.Linear(net.num_features, len(training.classes))
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    has_it = "avx512_bf16" in flags or "amx_bf16" in flags
    fast = torch.autocast("cpu", torch.bfloat16, enabled=has_it and os.environ.get("PEER_BFLOAT16") != "0")

    def phase(epochs: int, groups: list[dict[str, Any]], body_trains: bool) -> list[float]:
        steps = epochs * -(-len(training) // BATCH)
        optimizer = torch.optim.AdamW(groups, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, [g["lr"] for g in groups], total_steps=steps)
        times = [time.monotonic()]
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
            times.append(time.monotonic())
        return outcome.laps(times)

    laps = phase(frozen, [{"params": list(head.parameters()), "lr": 3e-3}], body_trains=False)
    probed = time.monotonic() - began
    if tuned:
        # Statistics stay those of the source: evaluation mode holds for the normalisation also while its weights train.
        body = {"params": list(net.parameters()), "lr": 3e-4}
        phase(tuned, [body, {"params": list(head.parameters()), "lr": 1e-3}], body_trains=True)
    trained = time.monotonic() - began
    files, answers = tested(lambda x: head(net(x)), tree, transform(net), training.classes)
    phases = {
        "imports": imported, "frozen": probed - imported, "tuned": trained - probed,
        "testing": time.monotonic() - began - trained,
    }  # fmt: skip
    versions = {"torch": torch.__version__, "timm": timm.__version__}
    outcome.write(out, tree, files, answers, laps=laps, phases=phases, versions=versions)


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:4]), *(int(argument) for argument in sys.argv[4:6]))
