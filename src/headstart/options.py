"""What a person may say about a run. Nothing heavy: the command line takes its defaults from here before anything is imported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args, get_type_hints


@dataclass(frozen=True)
class Options:
    """What a person may say about a run.

    `backbone` a name, see `headstart backbones`, or "auto": those on this machine race; `weights` a local file for it. `plan` "auto",
    "head", "full" or a plan file. `engine` what runs the frozen stages: torch ("eager"), a compiler, or what is fastest ("auto").
    `budget` wall time in seconds, None for no bound. `store_limit` bytes. `unreadable` "skip" or "error"; `rare` what to do with a
    class of one image: "train" on it untested, "drop" it, "error". `mirror`: whether a picture still shows its class in the mirror.
    `pair`: whether two networks may answer together. Column names apply to tables.
    """

    backbone: str = "auto"
    weights: str | None = None
    plan: str = "auto"
    budget: float | None = 600.0
    store_limit: int | None = 20_000_000_000
    test_fraction: float = 0.2
    seed: int = 0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    engine: Literal["auto", "eager", "openvino", "compile"] = "auto"
    unreadable: Literal["skip", "error"] = "skip"
    rare: Literal["train", "drop", "error"] = "train"
    mirror: bool = True
    pair: bool = True
    path_column: str = "path"
    label_column: str = "label"
    split_column: str = "split"
    group_column: str = "group"


def allowed(name: str) -> tuple[str, ...]:
    """The values that an option may have, of those that are chosen from a list."""
    return get_args(get_type_hints(Options)[name])


CHOICES = tuple(name for name in Options.__annotations__ if allowed(name) and isinstance(allowed(name)[0], str))
