"""The HyperRule of Big Transfer (Kolesnikov et al. 2020, arXiv 1912.11370) on the same network and weights as the others.

    python bit_hyperrule.py TREE WEIGHTS OUT.json

Kept from the rule for fewer than 20,000 pictures: SGD with momentum 0.9, a rate of 0.003 that warms up over 100 of 500 steps and
falls to a tenth after 200, 300 and 400, a head that starts at zero, no weight decay, no mixup, pictures resized to a square, cropped
at random and mirrored. Adapted: batches of 32 instead of 512 at the same rate (a sixteenth of it would hardly leave the source);
crops of the network's own 224 pixels out of 256 where the rule has 480 out of 512 (pictures below 96 × 96 pixels: 128 out of 160,
as in the rule); batch statistics stay those of the source, for the rule's networks have none.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from statistics import median

import outcome

STEPS, WARM, RATE = 500, 100, 0.003
FALLS = (200, 300, 400)


def share(step: int) -> float:
    """What the rate is multiplied by at a step."""
    return step / WARM if step < WARM else 0.1 ** sum(step > fall for fall in FALLS)


def main(tree: Path, weights: Path, out: Path) -> None:
    """Train, test, write."""
    began = time.monotonic()
    import timm
    import torch
    from PIL import Image
    from pytorch import BATCH, network, tested
    from torch.utils.data import DataLoader, RandomSampler
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    torch.manual_seed(0)
    imported = time.monotonic() - began
    net = network(weights)
    training = ImageFolder(tree / "train")
    areas = []
    for path, _ in training.samples:
        with Image.open(path) as picture:
            areas.append(picture.width * picture.height)
    side, crop = (160, 128) if median(areas) < 96 * 96 else (256, 224)
    settings = timm.data.resolve_model_data_config(net)
    finish = [transforms.ToTensor(), transforms.Normalize(settings["mean"], settings["std"])]
    changed = [transforms.Resize((side, side)), transforms.RandomCrop(crop), transforms.RandomHorizontalFlip()]
    training.transform = transforms.Compose([*changed, *finish])
    head = torch.nn.Linear(net.num_features, len(training.classes))
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    model = torch.nn.Sequential(net, head)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
    drawn = RandomSampler(training, replacement=True, num_samples=STEPS * BATCH)
    for pictures, labels in DataLoader(training, BATCH, sampler=drawn, num_workers=2):
        answer = model(pictures.to(memory_format=torch.channels_last))
        loss = torch.nn.functional.cross_entropy(answer, labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    trained = time.monotonic() - began
    shown = transforms.Compose([transforms.Resize((crop, crop)), *finish])
    files, answers = tested(model, tree, shown, training.classes)
    phases = {"imports": imported, "tuned": trained - imported, "testing": time.monotonic() - began - trained}
    outcome.write(
        out, tree, files, answers, phases=phases, versions={"torch": torch.__version__, "timm": timm.__version__}
    )


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:]))
