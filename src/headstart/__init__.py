"""Headstart: from a folder of labelled images to a proven classifier.

    import headstart as hs
    run = hs.fit("photos/")        # Run: .verdict .metrics .plan .model .report
    model = hs.load("runs/moths")  # Model: .predict(images) -> Predictions

Every layer below is public too: `load_dataset`, `load_backbone`, `extract`, `race`, `decide`, `finetune`, `evaluate`.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headstart.backbones.backbone import Backbone, InputSpec
    from headstart.backbones.catalog import load_backbone
    from headstart.backbones.check import check_backbone
    from headstart.bundle import load, save
    from headstart.data.dataset import Dataset
    from headstart.data.load import audit, load_dataset
    from headstart.errors import HeadstartError
    from headstart.evaluate import evaluate
    from headstart.features.engine import Engine
    from headstart.features.extract import extract
    from headstart.features.store import Store
    from headstart.fit import fit
    from headstart.heads import fit_head
    from headstart.ladder import finetune
    from headstart.model import Model
    from headstart.options import Options
    from headstart.plan import Plan, Rung
    from headstart.planner import decide
    from headstart.race import race
    from headstart.run import Run

from headstart.runtime import patient_threads

__version__ = "0.1.0"

patient_threads()  # torch reads it once, when it is imported: so now, before any room is

# Imported when first asked for (PEP 562): `headstart --help` must not wait for torch.
_WHERE = {
    "Backbone": "backbones.backbone", "InputSpec": "backbones.backbone", "load_backbone": "backbones.catalog",
    "check_backbone": "backbones.check", "load": "bundle", "save": "bundle", "Dataset": "data.dataset",
    "audit": "data.load", "load_dataset": "data.load", "HeadstartError": "errors", "evaluate": "evaluate",
    "Engine": "features.engine", "extract": "features.extract", "Store": "features.store", "finetune": "ladder",
    "fit_head": "heads", "race": "race", "Model": "model", "Plan": "plan", "Rung": "plan", "decide": "planner",
    "Run": "run", "Options": "options", "fit": "fit",
}  # fmt: skip

__all__ = [
    "Backbone", "Dataset", "Engine", "HeadstartError", "InputSpec", "Model", "Options", "Plan", "Run", "Rung", "Store",
    "audit", "check_backbone", "decide", "evaluate", "extract", "finetune", "fit", "fit_head", "load", "load_backbone",
    "load_dataset", "race", "save",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'headstart' has no attribute '{name}'")
    return getattr(import_module(f"headstart.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)


class _Package(ModuleType):
    """Keeps names such as `headstart.evaluate` the functions: importing the rooms that are called so would bind them here."""

    def __setattr__(self, name: str, value: object) -> None:
        if name not in _WHERE or not isinstance(value, ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
