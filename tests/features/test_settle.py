"""bfloat16, which nobody asked for, has to prove that it is not slower; once, and where a job is long enough to notice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from headstart.features import engine as room
from headstart.features import settle as settling
from headstart.features.engine import CLEARLY, TURNS, Engine
from headstart.features.extract import extract
from headstart.features.folded import fold
from headstart.features.settle import PACED, settle
from headstart.features.store import Store
from headstart.features.way import PLAIN
from tests.toys import striped, stripes, tiny_backbone

CPU = torch.device("cpu")
FASTER = (1.0, 0.5)  # seconds a picture of bfloat16, and of float32
Clock = list[tuple[float, float]]


@pytest.fixture
def laps(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Turns to come: a lap of the way in use takes the first number, one of float32 the second. What comes later is `FASTER`."""
    monkeypatch.setattr(room, "has_fast_bfloat16", lambda device: True)
    turns: Clock = []

    def lap(engine: Engine, now: room._Settled, pictures: NDArray[np.uint8], batches: int) -> float:
        rounded, exact = turns[0] if turns else FASTER
        if now.way.precision == "bfloat16":
            return rounded
        if turns:
            turns.pop(0)
        return exact

    monkeypatch.setattr(Engine, "_lap", lap)
    return turns


def engine_of(precision: str = "auto", folded: bool = False) -> Engine:
    return Engine(tiny_backbone(), precision=precision, device=CPU, folded=folded)  # type: ignore[arg-type]


def precision_in(store: Store, count: int = 40) -> str:
    return settle(engine_of(), striped(count), store).precision


@pytest.mark.usefixtures("laps")
def test_float32_runs_where_it_is_clearly_faster(tmp_path: Path) -> None:
    engine = engine_of()
    found = extract(engine.backbone, striped(40), Store(tmp_path), engine=engine)
    assert engine.way == PLAIN
    plain = extract(engine.backbone, striped(40), Store(tmp_path / "other"), engine=engine_of("float32"))
    np.testing.assert_array_equal(found.stages((0, 4)), plain.stages((0, 4)))


@pytest.mark.usefixtures("laps")
def test_folded_copies_stay_folded_in_float32_if_they_compute_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No processor is asked for bfloat16: both copies are in float32.
    monkeypatch.setattr(room, "fold", lambda backbone, *dtypes: fold(backbone, *[torch.float32 for _ in dtypes]))
    assert settle(engine_of(folded=True), striped(40), Store(tmp_path)).before_compiling == "float32 folded"
    compared = Engine._compared

    def disagreeing(engine: Engine, sample: NDArray[np.uint8], wanted: str) -> room._Settled:
        return engine._plain() if wanted == "float32" else compared(engine, sample, wanted)  # type: ignore[arg-type]

    monkeypatch.setattr(Engine, "_compared", disagreeing)
    way = settle(engine_of(folded=True), striped(40), Store(tmp_path / "other"))
    assert way.precision == "bfloat16", "plain float32 has not been timed"


@pytest.mark.parametrize("slow", range(1 + TURNS))
def test_one_turn_in_which_float32_is_not_clearly_faster_leaves_bfloat16(
    laps: Clock, tmp_path: Path, slow: int
) -> None:
    laps += [FASTER] * slow + [(1.0, 1.01 / CLEARLY)]  # the first turn is float32's setting up, and does not count
    assert precision_in(Store(tmp_path)) == ("bfloat16" if slow else "float32")


def test_turns_end_with_the_first_that_decides(laps: Clock) -> None:
    engine, pictures = engine_of(), stripes(8)[0]
    assert engine.pace(pictures, 40, PACED) == ([1.0] * TURNS, [0.5] * TURNS)
    laps += [FASTER, FASTER, (1.0, 1.0)]
    assert engine.pace(pictures, 40, PACED) == ([1.0, 1.0], [0.5, 1.0])


@pytest.mark.usefixtures("laps")
def test_what_was_measured_holds_for_all_data_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert precision_in(Store(tmp_path)) == "float32"
    monkeypatch.setattr(Engine, "_lap", lambda *_: pytest.fail("it is known"))
    assert [precision_in(Store(tmp_path), count) for count in (40, 90, 5)] == ["float32"] * 3


@pytest.mark.usefixtures("laps")
def test_a_short_job_measures_nothing_that_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settling, "PACED", 41.0)
    assert precision_in(Store(tmp_path), 40) == "bfloat16"
    assert not list((tmp_path / "artifacts").glob("pace-*"))
    assert precision_in(Store(tmp_path), 90) == "float32"


@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_a_precision_that_was_asked_for_need_not_prove_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    monkeypatch.setattr(Engine, "_lap", lambda *_: pytest.fail("nobody asked"))
    assert settle(engine_of(precision), striped(40), Store(tmp_path)).precision == precision


@pytest.mark.usefixtures("laps")
def test_nothing_else_runs_while_precisions_are_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    pace = Engine.pace

    def noted(engine: Engine, pictures: NDArray[np.uint8], job: int, worth: float) -> object:
        told.append("timed")
        return pace(engine, pictures, job, worth)

    monkeypatch.setattr(Engine, "pace", noted)
    settle(engine_of(), striped(40), Store(tmp_path), lambda: told.append("alone"))
    assert told == ["alone", "timed"]


def test_a_lap_takes_some_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it on the real clock."""
    monkeypatch.setattr(room, "has_fast_bfloat16", lambda device: True)
    laps = engine_of().pace(stripes(8)[0], 40, 0.0)
    assert laps is not None
    assert 1 <= len(laps[0]) == len(laps[1]) <= TURNS
    assert min(*laps[0], *laps[1]) > 0
    assert engine_of().pace(stripes(8)[0], 40, 1e9) is None
