"""A compiler gives what torch gives, is tried where it can pay, and is refused where it cannot be trusted."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Thread, get_ident
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from headstart.errors import BackboneError, MissingExtra
from headstart.features import compiled as room
from headstart.features import engine as engine_room
from headstart.features import settle as settling
from headstart.features.compiled import Gain, Runner, compiled, compilers
from headstart.features.engine import Engine
from headstart.features.extract import Features, extract
from headstart.features.store import Store
from tests.toys import needs_bfloat16, striped, stripes, tiny_backbone

CPU = torch.device("cpu")


def pictures(count: int = 11) -> NDArray[np.uint8]:
    return stripes(count)[0]


@pytest.fixture
def traced_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """`torch.compile` up to the graph, without the C++ compiler that a machine may lack."""
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda *given, options, **more: real(*given, backend="aot_eager", **more))


@pytest.mark.parametrize("runner", ["openvino", "compile"])
@pytest.mark.usefixtures("traced_only")
def test_a_compiled_engine_gives_what_torch_gives(runner: Runner) -> None:
    backbone = tiny_backbone()
    plain = Engine(backbone, precision="float32", folded=False)
    engine = Engine(backbone, precision="float32", runner=runner)
    engine.settle(pictures())
    assert engine.way is not None and engine.way.agreement is not None
    assert (engine.way.runner, str(engine.way), engine.way.agreement > 0.99999) == (
        runner,
        f"float32 folded {runner}",
        True,
    )
    for count in (1, 4, 11):  # batches of four; fewer are padded, and rows stay rows
        part = pictures()[:count]
        found = np.concatenate([engine.pooled(part[at : at + engine.batch]) for at in range(0, count, engine.batch)])
        np.testing.assert_allclose(found, plain.pooled(part), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("runner", ["openvino", "compile"])
@pytest.mark.usefixtures("traced_only")
def test_threads_share_a_compiled_engine(runner: Runner) -> None:
    engine = Engine(tiny_backbone(), precision="float32", runner=runner)
    alone = engine.pooled(pictures(4))
    found: list[NDArray[np.float32]] = []
    threads = [Thread(target=lambda: found.extend(engine.pooled(pictures(4)) for _ in range(20))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 80
    assert all(np.array_equal(alone, other) for other in found)


def test_with_graphs_one_thread_of_its_own_records_and_runs_them_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU needs, run on the CPU: CUDA graphs belong to the thread that recorded them."""
    real, ran = torch.compile, list[int]()

    def noted(tail: torch.nn.Module, *, fullgraph: bool, mode: str) -> Callable[[Tensor], Tensor]:
        assert mode == "reduce-overhead"
        run = real(tail, fullgraph=fullgraph, backend="aot_eager")

        def once(activation: Tensor) -> Tensor:
            ran.append(get_ident())
            return torch.as_tensor(run(activation))

        return once

    monkeypatch.setattr(torch, "compile", noted)
    entering, threads = torch.randn(4, 3, 32, 32), torch.get_num_threads()
    tail = room._Tail(tiny_backbone(), 0).eval()
    program = room._inductor(tail, entering, torch.float32, graphs=True)
    assert len(ran) == 3, "a graph is recorded after two runs"
    inputs = [torch.randn(4, 3, 32, 32) for _ in range(6)]
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(program, inputs))
    assert len(ran) == 9 and len(set(ran)) == 1 and get_ident() not in ran
    assert torch.get_num_threads() == threads
    for activation, rows in zip(inputs, found, strict=True):
        with torch.inference_mode():
            torch.testing.assert_close(rows, tail(activation), rtol=1e-4, atol=1e-5)


def test_new_weights_are_compiled_anew() -> None:
    backbone = tiny_backbone()
    engine = Engine(backbone, precision="float32", runner="openvino")
    before = engine.pooled(pictures(4))
    with torch.no_grad():
        next(backbone.parameters()).mul_(1.5)
    after = engine.pooled(pictures(4))
    assert not np.allclose(before, after)
    plain = Engine(backbone, precision="float32", folded=False)
    np.testing.assert_allclose(after, plain.pooled(pictures(4)), rtol=1e-4, atol=1e-5)


@needs_bfloat16
def test_bfloat16_is_compiled_after_the_exact_stages_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_room, "has_fast_bfloat16", lambda device: True)
    asked: list[tuple[int, torch.dtype]] = []

    def rounding(
        runner: Runner, backbone: Any, start: int, entering: Tensor, precision: torch.dtype
    ) -> Callable[[Tensor], Tensor]:
        asked.append((start, precision))
        program = compiled(runner, backbone, start, entering, torch.float32)
        # As if this compiler's bfloat16 were worse than torch's.
        noise = 0.3 * torch.randn(1, sum(backbone.widths[start:]), generator=torch.Generator().manual_seed(0))
        return (lambda x: program(x) + noise) if precision == torch.bfloat16 else program

    monkeypatch.setattr(engine_room, "compiled", rounding)
    engine = Engine(tiny_backbone(), device=CPU, runner="openvino")
    engine.settle(pictures())
    assert asked == [(0, torch.bfloat16), (0, torch.float32)]
    assert (engine.settled, str(engine.way)) == ("float32", "float32 folded openvino")
    named = Engine(tiny_backbone(), device=CPU, precision="bfloat16", runner="openvino")
    with pytest.raises(BackboneError, match="cosine"):
        named.settle(pictures())  # a precision that was named is not exchanged for another
    unasked = Engine(tiny_backbone(), device=CPU, runner="auto")
    unasked.settle(pictures())
    before = unasked.way
    with pytest.raises(BackboneError, match="cosine"):
        unasked.hasten("openvino", pictures())
    assert before is not None and before.precision == "bfloat16" and unasked.way == before


def test_a_compiler_that_computes_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(runner: Runner, backbone: Any, start: int, *_: Any) -> Callable[[Tensor], Tensor]:
        return lambda x: torch.randn(len(x), sum(backbone.widths[start:]))

    monkeypatch.setattr(engine_room, "compiled", wrong)
    with pytest.raises(BackboneError, match="Use --engine eager"):
        Engine(tiny_backbone(), precision="float32", runner="openvino").settle(pictures())


def test_a_compiler_that_fails_says_which_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any) -> None:
        raise RuntimeError("no such operation: aten::odd\nwith a long trace")

    monkeypatch.setattr(room, "_openvino", failing)
    with pytest.raises(BackboneError, match=r"OpenVINO cannot compile .*aten::odd.*--engine eager"):
        Engine(tiny_backbone(), precision="float32", runner="openvino").settle(pictures())


def test_a_compiler_that_is_not_installed_is_asked_for_by_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    monkeypatch.setattr(room, "version", lambda name: "")
    assert compilers(CPU) == ()
    with pytest.raises(MissingExtra, match="pip install"):
        Engine(tiny_backbone(), precision="float32", runner="openvino").settle(pictures())


def test_compilers_that_are_tried_unasked() -> None:
    assert compilers(CPU) == ("openvino",)
    assert compilers(torch.device("cuda")) == ("compile",)


def test_only_a_long_job_earns_a_compilation_back() -> None:
    gain = Gain(eager=0.005, compiled=0.003, building=2.0)
    assert [gain.pays(count) for count in (10, 999, 1001, 100_000)] == [False, False, True, True]
    assert not Gain(0.005, 0.006, 0.0).pays(10**9)


class Timed:
    """An engine's speeds as they are told here, and what was compiled."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, eager: float, faster: float) -> None:
        self.built = 0
        hasten = Engine.hasten

        def seconds(engine: Engine, given: NDArray[np.uint8]) -> float:
            assert engine.way is not None
            return eager if engine.way.runner == "eager" else faster

        def built(engine: Engine, runner: Runner, given: NDArray[np.uint8]) -> float:
            self.built += 1
            hasten(engine, runner, given)
            return 2.0

        monkeypatch.setattr(Engine, "seconds", seconds)
        monkeypatch.setattr(Engine, "hasten", built)


def run(store: Store, count: int = 40) -> tuple[Features, str]:
    engine = Engine(tiny_backbone(), precision="float32", runner="auto", device=CPU)
    features = extract(engine.backbone, striped(count), store, engine=engine)
    assert engine.way is not None
    return features, engine.way.runner


def test_a_compiler_is_tried_where_the_job_is_long_and_what_it_gains_is_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed = Timed(monkeypatch, eager=1.0, faster=0.5)
    features, runner = run(Store(tmp_path))
    assert (runner, timed.built) == ("openvino", 1)
    plain = Engine(tiny_backbone(), precision="float32")
    other = extract(plain.backbone, striped(40), Store(tmp_path / "other"), engine=plain)
    np.testing.assert_allclose(features.stages((0, 4)), other.stages((0, 4)), rtol=1e-3, atol=1e-4)
    monkeypatch.setattr(Engine, "seconds", lambda *_: pytest.fail("what was decided for these pictures is remembered"))
    monkeypatch.setattr(engine_room, "compiled", lambda *_: pytest.fail("nothing is left to run"))
    assert run(Store(tmp_path))[1] == "openvino"
    assert timed.built == 1


def test_a_few_pictures_do_not_earn_a_compilation_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timed = Timed(monkeypatch, eager=1.0, faster=0.9)  # ten pictures earn one of the two seconds that it took
    assert (run(Store(tmp_path), 40)[1], timed.built) == ("openvino", 1)
    monkeypatch.setattr(Engine, "seconds", lambda *_: pytest.fail("the gain is known"))
    assert (run(Store(tmp_path), 15)[1], timed.built) == ("eager", 1)


def test_a_gain_is_measured_once_for_all_data_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timed = Timed(monkeypatch, eager=1.0, faster=0.5)
    assert (run(Store(tmp_path), 40)[1], timed.built) == ("openvino", 1)
    monkeypatch.setattr(Engine, "seconds", lambda *_: pytest.fail("the gain is known"))
    assert (run(Store(tmp_path), 90)[1], timed.built) == ("openvino", 2)


def test_nothing_else_runs_while_speeds_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    Timed(monkeypatch, eager=1.0, faster=0.5)
    measure = Engine.seconds

    def measured(engine: Engine, given: NDArray[np.uint8]) -> float:
        told.append("measured")
        return measure(engine, given)

    monkeypatch.setattr(Engine, "seconds", measured)
    engine = Engine(tiny_backbone(), precision="float32", runner="auto", device=CPU)
    settling.settle(engine, striped(40), Store(tmp_path), lambda: told.append("alone"))
    assert told == ["alone", "measured", "measured"]


@pytest.mark.parametrize(("eager", "faster", "builds"), [(0.1, 0.01, 0), (1.0, 1.1, 1)])
def test_a_compiler_is_not_used_where_it_cannot_pay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eager: float, faster: float, builds: int
) -> None:
    timed = Timed(monkeypatch, eager, faster)
    assert (run(Store(tmp_path))[1], timed.built) == ("eager", builds)
    assert (run(Store(tmp_path), 70)[1], timed.built) == ("eager", builds), "known to lose: never again"


@needs_bfloat16
def test_where_bfloat16_runs_already_only_a_long_job_tries_a_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed = Timed(monkeypatch, eager=1.0, faster=0.5)
    for count, builds in ((40, 0), (90, 1)):
        engine = Engine(tiny_backbone(), precision="bfloat16", runner="auto", device=CPU)
        settling.settle(engine, striped(count), Store(tmp_path))
        assert timed.built == builds


@pytest.mark.parametrize("error", [BackboneError("a cosine of 0.9"), MissingExtra("It", "openvino", "openvino")])
def test_a_compiler_that_fails_unasked_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    Timed(monkeypatch, eager=1.0, faster=0.5)
    tried: list[Runner] = []

    def failing(engine: Engine, runner: Runner, given: NDArray[np.uint8]) -> float:
        tried.append(runner)
        raise error

    monkeypatch.setattr(Engine, "hasten", failing)
    assert run(Store(tmp_path))[1] == "eager"
    assert run(Store(tmp_path))[1] == "eager"
    assert tried == ["openvino"], "remembered for these pictures"
    assert run(Store(tmp_path), 70)[1] == "eager"
    again = isinstance(error, MissingExtra)
    assert tried == ["openvino"] * (1 + again), "what does not agree is not compiled in vain again"


def test_openvino_says_that_it_runs_on_the_cpu() -> None:
    backbone = tiny_backbone()
    with pytest.raises(BackboneError, match="--engine compile, or eager"):
        compiled("openvino", backbone, 0, torch.empty(4, 3, 32, 32, device="meta"), torch.float32)


def test_a_batch_that_fails_later_is_told_like_a_compilation_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(activation: Tensor) -> Tensor:
        raise RuntimeError("out of memory\nby far")

    monkeypatch.setattr(room, "_openvino", lambda *_: broken)
    program = compiled("openvino", tiny_backbone(), 0, torch.empty(4, 3, 32, 32), torch.float32)
    with pytest.raises(BackboneError, match=r"OpenVINO cannot run this backbone here \(out of memory\)"):
        program(torch.empty(4, 3, 32, 32))


def test_what_was_asked_for_is_remembered_with_the_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = tiny_backbone()
    first = Engine(backbone, precision="float32", runner="openvino")
    extract(backbone, striped(20), Store(tmp_path), engine=first)
    again = Engine(backbone, precision="float32", runner="openvino")
    monkeypatch.setattr(engine_room, "compiled", lambda *_: pytest.fail("nothing is run, so nothing is compiled"))
    extract(backbone, striped(20), Store(tmp_path), engine=again)
    assert again.way is not None and again.way.runner == "openvino"


def test_openvino_tells_nobody_of_the_conversion(monkeypatch: pytest.MonkeyPatch) -> None:
    import openvino_telemetry as telemetry

    monkeypatch.setattr(telemetry.Telemetry, "send_event", lambda *_, **__: pytest.fail("sent"))
    monkeypatch.setattr(telemetry.Telemetry, "start_session", lambda *_, **__: pytest.fail("started"))
    Engine(tiny_backbone(), precision="float32", runner="openvino").settle(pictures())
