"""More views: heads are fitted to crops and mirror images of the pictures as well, where these are few.

On seven data sets the head that is chosen is right for about one picture in a hundred more with them, be there 5 or 20 training
pictures a class or up to 122 (`benchmarks/views.py`). Where there are more, the time that three more passes take is spent elsewhere.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import suppress

from headstart import runtime
from headstart.data.dataset import Dataset
from headstart.errors import StoreError
from headstart.features.activations import cache_views
from headstart.features.engine import Engine
from headstart.features.extract import Features, with_views
from headstart.features.store import Store
from headstart.lineup import PASS_SHARE

VIEWS = 3  # beside the clean one: as many as a rung has
A_CLASS, IN_ALL = 100, 2000  # training pictures at most, on the mean and together
_FIRST = 32  # pictures that tell how long it takes


def more_views(
    features: Features,
    engines: Sequence[Engine],
    dataset: Dataset,
    store: Store,
    *,
    seed: int = 0,
    cuts: Sequence[int] = (),
    deadline: float = math.inf,
    budget: float | None = None,
    progress: runtime.Progress = runtime.silent,
) -> tuple[Features, str, list[int]]:
    """The features with those of more views of the training pictures, or as they are; why they are so, "" where that goes without
    saying; and those of `cuts` whose activations of these views the pass has cached, which the only one of `engines` makes.

    What is decided depends on the time that is left until `deadline`, and is remembered: the same run with the same `budget` decides
    the same. Without room in the store there are none.
    """
    pool = dataset.indices("train")
    if len(pool) > min(IN_ALL, A_CLASS * len(dataset.classes)):
        return features, "", []
    digests = [[engine.backbone.digest(), *engine.backbone.input.size] for engine in engines]
    memo = store.artifact(
        "views",
        {"data": dataset.digest, "backbones": digests, "seed": seed, "views": VIEWS, "budget": budget, "version": 2},
    )
    stored, cached = memo.load(), False
    try:
        if stored is not None:
            record = stored[0]
        elif time.monotonic() >= deadline:
            record = {"taken": False, "seconds": 0.0, "room": 0.0}
            memo.save(record, {})
        else:
            began = time.monotonic()
            with_views(features, engines, dataset, store, VIEWS, only=pool[:_FIRST], seed=seed)
            needed = (time.monotonic() - began) / min(_FIRST, len(pool)) * max(0, len(pool) - _FIRST)
            room = max(0.0, PASS_SHARE * (deadline - time.monotonic()))
            record = {"taken": needed <= room, "seconds": needed, "room": min(room, needed)}
            memo.save(record, {})
        if not record["taken"]:
            needed, room = (math.ceil(record[name]) for name in ("seconds", "room"))
            said = f"{VIEWS} more of each picture would take about {needed} s, and {room} s may go into them"
            return features, f"{said if room else 'no time is left for more of each picture'}: heads do without", []
        with suppress(StoreError):  # rungs may find no room for what they need; heads need little
            cached = bool(cuts) and cache_views(
                engines[0], dataset, store, cuts, VIEWS, only=pool, seed=seed, progress=progress
            )
        looked = with_views(features, engines, dataset, store, VIEWS, only=pool, seed=seed, progress=progress)
        return looked, "", list(cuts) if cached else []
    except StoreError as error:
        return features, f"heads do without more of them: {error}", []
