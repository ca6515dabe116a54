"""Every test has its own cache folder, and one thread: the tensors are small, and threads that wait cost more than they give.

One run of the main job, from a folder of pictures to a run folder, is made once and looked at by many tests.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from headstart.features.store import Store


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that HEADSTART_CACHE points to."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("HEADSTART_CACHE", str(folder))
    return folder


@pytest.fixture(autouse=True, scope="session")
def single_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def store(cache: Path) -> Store:
    """An empty store."""
    return Store()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The baseline from scratch tries one learning rate instead of three."""
    monkeypatch.setattr("headstart.proof.RATES", (3e-3,))


@dataclass(frozen=True)
class Trained:
    """A finished run: its pictures, the weights and the plan that it was given, its folder, and the cache that it filled."""

    pictures: Path
    weights: Path
    plan: Path
    run: Path
    cache: Path
    arguments: tuple[str, ...]  # what to type after `headstart fit` to have it again


BACKBONE = "test_efficientnet"
STAGES = ["conv_stem", "blocks.0", "blocks.1", "blocks.2", "blocks.3", "blocks.4", "conv_head"]


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of timm's smallest EfficientNet, drawn at random."""
    import timm
    from safetensors.torch import save_file

    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    drawn = torch.random.get_rng_state()
    torch.manual_seed(0)
    save_file(timm.create_model(BACKBONE).state_dict(), path)
    torch.random.set_rng_state(drawn)
    return path


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> Trained:
    """130 pictures of 3 classes, a plan with one rung, and a baseline from scratch of one epoch."""
    from headstart.fit import fit
    from headstart.options import Options
    from tests.toys import folder

    root = tmp_path_factory.mktemp("trained")
    pictures = folder(root / "pictures", 130, contrast=22)
    rung = {"cut": 5, "epochs": 2, "views": 2, "lr_body": 3e-3, "lr_head": 3e-3}
    plan = {"backbone": f"timm:{BACKBONE}", "stages": STAGES, "rungs": [rung], "scratch_epochs": 1}
    (root / "plan.json").write_text(json.dumps(plan))
    options = Options(backbone=BACKBONE, weights=str(weights), plan=str(root / "plan.json"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEADSTART_CACHE", str(root / "cache"))
        patch.setattr("headstart.proof.RATES", (3e-3,))
        fit(pictures, root / "run", options)
    typed = ("--backbone", BACKBONE, "--weights", str(weights), "--plan", str(root / "plan.json"))
    return Trained(
        pictures,
        weights,
        root / "plan.json",
        root / "run",
        root / "cache",
        (str(pictures), "--out", str(root / "run"), *typed),
    )
