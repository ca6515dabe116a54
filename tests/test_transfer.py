"""The main job, end to end: what it writes, that it repeats, that it resumes, and where it refuses."""

from __future__ import annotations

import csv
import io
import json
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import headstart as hs
from headstart import runtime
from headstart.backbones.backbone import Backbone
from headstart.choice import Ways
from headstart.data.dataset import Dataset
from headstart.data.sources import FileImages
from headstart.errors import OptionError, OutputError, PlanError, TooLittleData, UnknownBackbone
from headstart.features.store import Store
from headstart.folder import Folder
from headstart.options import Options
from headstart.plan import Plan, Rung
from headstart.report.gather import _thumbnails
from headstart.request import audited, examined
from tests.conftest import BACKBONE, STAGES, Trained
from tests.toys import TinyNet, folder, stripes

FILES = [
    "audit.json", "config.json", "doubts.csv", "log.txt", "metrics.json", "model.json", "model.safetensors", "plan.json",
    "predictions.csv", "report.html", "trained_on.txt",
]  # fmt: skip


def options(trained: Trained, **changes: Any) -> Options:
    return replace(Options(backbone=BACKBONE, weights=str(trained.weights), plan=str(trained.plan)), **changes)


def metrics(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "metrics.json").read_text())
    return found


def test_the_run_folder_holds_what_the_design_says(trained: Trained) -> None:
    assert sorted(path.name for path in trained.run.iterdir()) == FILES
    config = json.loads((trained.run / "config.json").read_text())
    assert config["format"] == 1
    assert config["source"] == str(trained.pictures)
    assert config["options"]["backbone"] == BACKBONE and config["options"]["seed"] == 0
    assert {"python", "torch", "timm", "headstart"} <= set(config["versions"])
    plan = json.loads((trained.run / "plan.json").read_text())
    assert plan["stages"] == STAGES and len(plan["rungs"]) == 1
    audit = json.loads((trained.run / "audit.json").read_text())
    assert (audit["images"], audit["splits"]["test"]) == (130, 27)
    log = (trained.run / "log.txt").read_text()
    assert "130 images of 3 classes: 103 train, 27 test" in log and "evaluate took" in log


def test_the_metrics_are_as_outlined(trained: Trained) -> None:
    found = metrics(trained.run)
    assert {"format", "verdict", "overkill", "chosen", "test", "seconds", "peak_memory_bytes"} <= set(found)
    assert found["format"] == 1
    assert found["verdict"] in ("helped", "hurt", "not distinguishable")
    assert found["overkill"] in (True, False)
    assert found["chosen"] == ("finetuned" if found["rungs"][0]["kept"] else "head")
    test = found["test"]
    assert (test["images"], test["opened"], test["protocol"], test["repeats"]) == (27, 1, "sealed test", 1)
    assert set(test["models"]) == {"final", "head", "last_stage_head", "scratch_cnn", "pixels", "majority"}
    for scores in test["models"].values():
        for name in ("accuracy", "balanced_accuracy", "macro_f1", "log_loss", "ece"):
            assert scores[name]["low"] <= scores[name]["value"] <= scores[name]["high"]
    pairs = {(row["a"], row["b"], row["metric"]) for row in test["differences"]}
    assert {("final", "scratch_cnn", "accuracy"), ("final", "head", "accuracy")} <= pairs
    assert {"total", "audit", "extract", "head", "finetune", "baselines", "evaluate", "report"} <= set(found["seconds"])
    assert found["peak_memory_bytes"] > 10_000_000
    assert len(found["rungs"]) == 1 and found["rungs"][0]["cut"] == 5
    assert "NaN" not in (trained.run / "metrics.json").read_text()


def test_the_predictions_are_those_of_the_saved_model(trained: Trained) -> None:
    with (trained.run / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["path", "label", "predicted", "probability", "second", "second_probability"]
    assert [row["path"] for row in rows] == sorted(row["path"] for row in rows)
    model = hs.load(trained.run)
    answers = model.predict([trained.pictures / row["path"] for row in rows])
    assert [row["predicted"] for row in rows] == answers.labels
    for row, answer in zip(rows, answers, strict=True):
        assert row["label"] == Path(row["path"]).parts[0]
        assert float(row["probability"]) == pytest.approx(answer.probability, abs=2e-5)
        assert (row["second"], float(row["second_probability"])) == (
            answer.second, pytest.approx(answer.second_probability, abs=2e-5),
        )  # fmt: skip
    right = np.mean([row["label"] == row["predicted"] for row in rows])
    assert metrics(trained.run)["test"]["models"]["final"]["accuracy"]["value"] == pytest.approx(right)


def test_doubtful_labels_are_listed_the_least_likely_first(trained: Trained) -> None:
    with (trained.run / "doubts.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    sure = sum(row["confident"] == "yes" for row in rows)
    assert metrics(trained.run)["doubts"] == {"pictures": len(rows), "confident": sure, "of": 103}
    assert {row["confident"] for row in rows} <= {"yes", "no"}
    assert len(rows) > 0, "low contrast leaves doubts"
    own = [float(row["label_probability"]) for row in rows]
    assert own == sorted(own)
    for row in rows:
        assert row["label"] == Path(row["path"]).parts[0] != row["suggested"]
        assert float(row["suggested_probability"]) > float(row["label_probability"])
    tested = {row["path"] for row in csv.DictReader((trained.run / "predictions.csv").read_text().splitlines())}
    assert not tested & {row["path"] for row in rows}, "sealed pictures are not looked at"
    assert f"{len(rows)} of 103 training pictures" in (trained.run / "report.html").read_text()


def test_the_learning_curve_is_of_the_training_pictures(trained: Trained) -> None:
    found = metrics(trained.run)["growth"]
    assert [pictures for pictures, _ in found["measured"]] == [26, 52, 77, 103]
    assert [each["pictures"] for each in found["foretold"]] == [103, 146, 206, 291, 412]
    assert found["foretold"][0]["accuracy"] == pytest.approx(found["measured"][-1][1])
    for each in found["foretold"]:
        assert each["low"] <= each["accuracy"] <= each["high"]
    assert found["sentence"].replace(" %", "\u00a0%") in (trained.run / "report.html").read_text()


def test_a_second_fit_is_all_from_the_store(trained: Trained, monkeypatch: pytest.MonkeyPatch, quick: None) -> None:
    def computed(*_: object, **__: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setenv("HEADSTART_CACHE", str(trained.cache))
    monkeypatch.setattr(Backbone, "forward", computed)
    monkeypatch.setattr(Backbone, "pooled", computed)
    monkeypatch.setattr(Backbone, "run_and_pool", computed)
    monkeypatch.setattr("headstart.tuning.train", computed)
    monkeypatch.setattr("headstart.scratch.train", computed)
    monkeypatch.setattr(import_module("headstart.race"), "_compete", computed)
    monkeypatch.setattr(import_module("headstart.diagnosis.growth"), "answered", computed)
    before, model = metrics(trained.run), (trained.run / "model.safetensors").read_bytes()
    again = hs.fit(trained.pictures, trained.run, options(trained))
    assert (trained.run / "model.safetensors").read_bytes() == model
    assert again.metrics["test"] == json.loads(json.dumps(before["test"]))
    assert again.metrics["rungs"][0]["gain"] == before["rungs"][0]["gain"]
    assert json.loads(json.dumps(again.metrics["growth"])) == before["growth"]


def test_what_fit_returns_is_what_it_wrote(trained: Trained, monkeypatch: pytest.MonkeyPatch, quick: None) -> None:
    monkeypatch.setenv("HEADSTART_CACHE", str(trained.cache))
    run = hs.fit(trained.pictures, trained.run, options(trained))
    assert run.folder == trained.run and run.report == trained.run / "report.html"
    assert run.verdict.outcome == metrics(trained.run)["verdict"]
    assert run.report_html == (trained.run / "report.html").read_text()
    assert run.plan == hs.Plan.model_validate_json((trained.run / "plan.json").read_text())
    pictures = [trained.pictures / name for name in run.dataset.names[:5]]
    same = hs.load(trained.run).predict(pictures)
    assert np.array_equal(run.model.predict(pictures).probabilities, same.probabilities)
    assert len(run.predictions) == 27


def test_renamed_files_elsewhere_and_another_cache_give_the_same_model(
    trained: Trained, tmp_path: Path, quick: None
) -> None:
    """Nothing is shared with the first run but the contents, the plan and the seed."""
    for number, path in enumerate(sorted(trained.pictures.rglob("*.png"), reverse=True)):
        target = tmp_path / "moved" / path.parent.name / f"{number:04d}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    hs.fit(tmp_path / "moved", tmp_path / "run", options(trained))
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == (trained.run / "model.safetensors").read_bytes()
    old, new = metrics(trained.run), metrics(tmp_path / "run")
    assert new["temperature"] == pytest.approx(old["temperature"], rel=1e-4)
    assert new["growth"] == old["growth"]
    for name in ("final", "scratch_cnn", "pixels", "majority"):
        assert new["test"]["models"][name]["accuracy"]["value"] == old["test"]["models"][name]["accuracy"]["value"]


@contextmanager
def _struck(left: list[int]) -> Iterator[runtime.Advance]:
    def advance(count: int = 1, /, **_: object) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt

    yield advance


@pytest.mark.parametrize(("bar", "after"), [("Extracting", 4), ("Rung 1", 0), ("Baseline", 0)])
def test_interrupted_and_typed_again_ends_with_the_same_result(
    trained: Trained, tmp_path: Path, quick: None, bar: str, after: int
) -> None:
    left = [after]

    def progress(description: str, total: int, unit: str = "images", /) -> Any:
        return _struck(left) if description.startswith(bar) else runtime.silent(description, total, unit)

    with pytest.raises(KeyboardInterrupt):
        hs.fit(trained.pictures, tmp_path / "run", options(trained), progress=progress)
    assert "stopped: KeyboardInterrupt" in (tmp_path / "run" / "log.txt").read_text()
    assert not (tmp_path / "run" / "metrics.json").exists()
    if bar == "Baseline":  # the model itself can be used before it is proven
        assert (tmp_path / "run" / "model.safetensors").read_bytes() == (trained.run / "model.safetensors").read_bytes()
        assert hs.load(tmp_path / "run").classes == hs.load(trained.run).classes
    told: list[str] = []
    hs.fit(trained.pictures, tmp_path / "run", options(trained), tell=told.append)
    assert "an unfinished run" in told[0] and metrics(tmp_path / "run")["resumed"]
    assert any(line.startswith("plan: stages from blocks.4 on train; 2 epochs, 2 views") for line in told)
    assert sum(line.startswith("rung from blocks.4: ") for line in told) == 1, (
        "by the name that the plan and the report give it"
    )
    assert "the timings are those of its last part" in (tmp_path / "run" / "report.html").read_text()
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == FILES
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == (trained.run / "model.safetensors").read_bytes()
    assert metrics(tmp_path / "run")["test"] == metrics(trained.run)["test"]
    assert not [entry for entry in Store().entries() if entry.kind == "checkpoint"]


def test_a_run_that_is_repeated_keeps_its_model_until_there_is_another(
    trained: Trained, tmp_path: Path, quick: None
) -> None:
    def interrupted(at: str) -> None:
        def progress(description: str, total: int, unit: str = "images", /) -> Any:
            return _struck([0]) if description.startswith(at) else runtime.silent(description, total, unit)

        with pytest.raises(KeyboardInterrupt):
            hs.fit(pictures, run, options(trained), progress=progress)

    pictures, run = shutil.copytree(trained.pictures, tmp_path / "pictures"), tmp_path / "run"
    hs.fit(pictures, run, options(trained))
    finished = {name: (run / name).read_bytes() for name in ("model.safetensors", "model.json", "metrics.json")}
    Store().clear()
    for at in ("Extracting", "Rung 1"):  # what is forgotten at the first interruption would show at the second
        interrupted(at)
        for name, content in finished.items():
            assert (run / name).read_bytes() == content, "the head's model must not replace it"
    next(pictures.rglob("*.png")).unlink()
    interrupted("Rung 1")
    assert (run / "model.safetensors").read_bytes() != finished["model.safetensors"], "that was of other pictures"
    assert not (run / "metrics.json").exists(), "and so was its proof"


def test_a_compiler_that_is_asked_for_runs_the_frozen_stages(trained: Trained, tmp_path: Path, quick: None) -> None:
    plan = head_plan(tmp_path / "plan.json", f"timm:{BACKBONE}", STAGES)
    runs = {
        engine: hs.fit(trained.pictures, tmp_path / engine, options(trained, plan=plan, engine=engine))  # type: ignore[arg-type]
        for engine in ("openvino", "eager")
    }
    for engine, run in runs.items():
        log = (tmp_path / engine / "log.txt").read_text()
        assert "engine: " in log and ", features at a cosine of " in log
        assert run.metrics["engine"]["runner"] == engine
        assert run.metrics["test"]["models"]["final"]["accuracy"]["value"] > 0.5
    answers = [[row["predicted"] for row in run.predictions] for run in runs.values()]
    assert np.mean(np.array(answers[0]) == np.array(answers[1])) > 0.9


def head_plan(path: Path, backbone: str, stages: list[str]) -> str:
    path.write_text(json.dumps({"backbone": backbone, "stages": stages, "rungs": [], "scratch_epochs": 1}))
    return str(path)


def test_the_head_alone(trained: Trained, monkeypatch: pytest.MonkeyPatch, quick: None) -> None:
    monkeypatch.setenv("HEADSTART_CACHE", str(trained.cache))
    monkeypatch.setattr("headstart.proof.scratch_epochs", lambda *_: (1, "one epoch"))
    run = hs.fit(trained.pictures, None, options(trained, plan="head"))
    assert (run.metrics["chosen"], run.plan.rungs) == ("head", [])
    models = run.metrics["test"]["models"]
    assert models["final"] == models["head"]
    assert run.model.backbone.digest() == hs.load_backbone(BACKBONE, weights=trained.weights).digest()
    assert run.folder is None and run.report is None
    assert "<html" in run.report_html


def test_too_few_for_a_test_set_means_repeated_cross_validation(tmp_path: Path, quick: None) -> None:
    plan = head_plan(tmp_path / "plan.json", "module:TinyNet", ["stem", "blocks.0", "blocks.1", "blocks.2", "blocks.3"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("headstart.proof.REPEATS", 2)
        patch.setattr("headstart.proof.Scratching.run", _nothing_learnt)
        run = hs.fit(stripes(30), tmp_path / "run", Options(plan=plan), module=TinyNet())
    test = run.metrics["test"]
    assert (test["images"], test["opened"], test["protocol"], test["repeats"]) == (
        30,
        0,
        "repeated cross-validation",
        2,
    )
    assert "in repeated cross-validation on 30 images (no test set was cut)" in run.verdict.sentence
    assert len(run.predictions) == 30
    assert len({row["path"] for row in run.predictions}) == 30
    assert run.metrics["chosen"] == "head"


def _nothing_learnt(self: Any) -> Any:
    from headstart.scratch import Scratch

    return Scratch(np.zeros((len(self.test), 3), np.float32), 1e-3, self.epochs, 0.0, True, True)


def test_arrays_in_memory_and_a_network_of_your_own(tmp_path: Path, quick: None) -> None:
    plan = head_plan(tmp_path / "plan.json", "module:TinyNet", ["stem", "blocks.0", "blocks.1", "blocks.2", "blocks.3"])
    pictures, labels = stripes(124, classes=2)
    run = hs.fit((pictures, labels), None, Options(plan=plan), module=TinyNet())
    assert run.folder is None
    assert run.dataset.classes == ("0", "1")
    assert run.model.predict(pictures[:3]).probabilities.shape == (3, 2)
    hs.save(run.model, tmp_path / "kept")
    again = hs.load(tmp_path / "kept", module=TinyNet(seed=1))
    assert np.array_equal(again.predict(pictures[:8]).probabilities, run.model.predict(pictures[:8]).probabilities)


def test_time_that_is_used_up_still_gives_a_proven_model(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADSTART_CACHE", str(trained.cache))
    told: list[str] = []
    run = hs.fit(trained.pictures, None, options(trained, budget=1e-6, seed=0), tell=told.append)
    assert run.metrics["chosen"] == "head" and run.metrics["rungs"] == []
    assert any("was not tried: the time was used up" in line for line in told)
    assert math.isfinite(run.metrics["test"]["models"]["scratch_cnn"]["log_loss"]["value"])


def _forced(whole: Any, *given: Any) -> Rung:
    rung: Rung = whole(*given).model_copy(update={"forced": True, "epochs": 2})
    return rung


@pytest.mark.parametrize("slow", [False, True])
def test_the_plan_that_a_run_writes_repeats_it_in_an_empty_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None, slow: bool
) -> None:
    """Bit for bit: also where the views of heads cached what rungs started from, and where the pace of the first left no time for the
    second."""
    monkeypatch.setattr("headstart.planner.FEW_IMAGES", 60)
    monkeypatch.setattr("headstart.planner.LADDER", (0.7, 0.3))
    monkeypatch.setattr("headstart.proof.scratch_epochs", lambda *_: (1, "one epoch"))
    short = partial(_forced, import_module("headstart.planner").rung_from)
    monkeypatch.setattr("headstart.planner.rung_from", short)
    if slow:
        monkeypatch.setattr("headstart.cost.pace", lambda *_: 1e9)
    pictures, given = stripes(150, contrast=18), Options(budget=3600.0, precision="float32", engine="eager")
    runs = []
    for place, plan in enumerate(("auto", str(tmp_path / "plan.json"))):
        monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / f"cache {place}"))
        run = hs.fit(pictures, None, replace(given, plan=plan), module=TinyNet())
        (tmp_path / "plan.json").write_text(run.plan.model_dump_json())
        runs.append(run)
    auto, again = runs
    assert auto.plan.evidence is not None
    cuts = [rung.cut for rung in auto.plan.rungs]
    assert len(auto.plan.evidence.cached) == 2 and cuts == sorted(auto.plan.evidence.cached, reverse=True)[: 2 - slow]
    kept = [[(rung["cut"], rung["kept"], rung["gain"]) for rung in run.metrics["rungs"]] for run in runs]
    assert kept[0] == kept[1] and len(kept[0]) == 2 - slow
    assert auto.model.backbone.digest() == again.model.backbone.digest()
    assert np.array_equal(auto.model.head.weight, again.model.head.weight)


@pytest.mark.parametrize("mirror", [True, False])
def test_what_a_person_says_of_the_mirror_goes_with_the_data(trained: Trained, store: Store, mirror: bool) -> None:
    assert audited(trained.pictures, options(trained, mirror=mirror), store).mirror is mirror


def test_refusals_come_early_and_say_what_to_do(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(UnknownBackbone, match=r"there is no backbone '(timm:)?test_efficientnit'"):
        hs.fit(trained.pictures, None, options(trained, backbone="test_efficientnit", weights=None))
    with pytest.raises(TooLittleData, match="At least 8 are needed"):
        hs.fit(folder(tmp_path / "few", 6), None, options(trained))
    (tmp_path / "mine").mkdir()
    for out in (tmp_path / "run", tmp_path / "mine"):
        with pytest.raises(TooLittleData):
            hs.fit(tmp_path / "few", out, options(trained))
    assert not (tmp_path / "run").exists()  # data that cannot be used leave no run behind
    assert list((tmp_path / "mine").iterdir()) == []
    lone = [f"{path},{path.parent.name},{path.parent.name}" for path in sorted(trained.pictures.rglob("*.png"))]
    (tmp_path / "lone.csv").write_text("\n".join(["path,label,group", *lone]))
    with pytest.raises(TooLittleData, match=r"the pictures of each class .* belong to one group"):
        hs.fit(tmp_path / "lone.csv", None, options(trained))
    plan = head_plan(tmp_path / "other.json", "timm:other", STAGES)
    with pytest.raises(PlanError, match="is for timm:other with stages"):
        hs.fit(trained.pictures, None, options(trained, plan=plan))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"precision": "float16"}, "precision='float16': expected one of 'auto', 'float32', 'bfloat16'"),
        ({"engine": "x"}, "engine='x': expected one of"),
        ({"budget": "60"}, "budget='60': expected seconds above 0, or None"),
        ({"budget": math.inf}, "budget=inf: expected seconds above 0, or None"),
        ({"store_limit": "20GB"}, "store_limit='20GB': expected bytes above 0, or None"),
        ({"seed": 1.5}, "seed=1.5: expected a whole number, 0 to 2"),
        ({"seed": 10**29}, "seed=100000000000000000000000000000: expected a whole number"),
        ({"seed": -1}, "seed=-1: expected a whole number"),
        ({"test_fraction": 1.0}, "test_fraction=1.0: expected a share between 0 and 1"),
    ],
)
def test_options_that_cannot_be_are_refused_before_anything_is_read(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        hs.fit("nowhere", None, Options(**wrong))


def test_options_may_be_paths_and_numbers_of_numpy(tmp_path: Path, quick: None) -> None:
    plan = head_plan(tmp_path / "plan.json", "module:TinyNet", ["stem", "blocks.0", "blocks.1", "blocks.2", "blocks.3"])
    given: dict[str, Any] = {"plan": Path(plan), "seed": np.int64(3), "budget": np.float32(60)}
    hs.fit(stripes(124, classes=2), tmp_path / "run", Options(**given), module=TinyNet())
    kept = json.loads((tmp_path / "run" / "config.json").read_text())["options"]
    assert (kept["plan"], kept["seed"], kept["budget"]) == (plan, 3, 60.0)


def test_a_run_on_other_arrays_is_not_replaced_without_a_word(tmp_path: Path) -> None:
    with Folder.claim(tmp_path, stripes(30), Options()) as folder:
        folder.write("model.json", "of other arrays")
        folder.is_of("their digest")
    with pytest.raises(OutputError, match=r"holds a run on other data\. Give another folder, or overwrite=True"):
        hs.fit(stripes(30), tmp_path, Options())
    assert (tmp_path / "model.json").read_text() == "of other arrays"
    assert json.loads((tmp_path / "config.json").read_text())["data"] == "their digest"


def test_what_is_no_options_is_refused_and_shown_how() -> None:
    for wrong in ({"budget": 1}, {}, 60):
        with pytest.raises(
            TypeError, match=rf"type {type(wrong).__name__}, expected headstart\.Options: fit\(data, options=h"
        ):
            hs.fit("nowhere", None, wrong)  # type: ignore[arg-type]


def test_another_network_of_one_s_own_is_another_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    monkeypatch.setattr("headstart.proof.scratch_epochs", lambda *_: (1, "one epoch"))
    pictures, labels = stripes(30)
    chosen, run = Options(plan="head", budget=60.0), tmp_path / "run"
    hs.fit((pictures, labels), run, chosen, module=TinyNet(1))
    hs.fit((pictures, labels), run, chosen, module=TinyNet(1))
    with pytest.raises(OutputError, match="holds a run on other data or with other options"):
        hs.fit((pictures, labels), run, chosen, module=TinyNet(2))
    config = json.loads((run / "config.json").read_text())
    assert config["network"].startswith("TinyNet ") and config["command"].endswith(", module=TinyNet)")
    with pytest.raises(OptionError, match="a network of your own, and a backbone or weights in the options"):
        hs.fit((pictures, labels), None, Options(backbone="tf_efficientnet_lite0"), module=TinyNet())


def test_an_audit_of_data_that_cannot_be_used_is_still_an_audit(tmp_path: Path) -> None:
    assert examined(folder(tmp_path / "few", 6), Options()).usable == 6
    report = examined(folder(tmp_path / "one", 4, classes=1), Options())
    assert report.errors


def test_the_labels_of_the_sealed_pictures_decide_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    """Two tables that differ in the labels of the test pictures alone give the same model, rungs and all."""
    pictures, labels = stripes(130, contrast=22)
    models, losses = [], []
    for turn in (0, 1):
        monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / f"cache {turn}"))  # a shared one could hide a leak
        rows = ["path,label,split"]
        for place, label in enumerate(labels):
            Image.fromarray(pictures[place]).save(tmp_path / f"{place}.png")
            rows.append(
                f"{place}.png,{(label + turn) % 3 if place >= 100 else label},{'test' if place >= 100 else 'train'}"
            )
        (tmp_path / f"{turn}.csv").write_text("\n".join(rows))
        names = ["stem", "blocks.0", "blocks.1", "blocks.2", "blocks.3"]
        plan = Plan(backbone="module:TinyNet", stages=names, rungs=[Rung(cut=2, epochs=2, views=2)], scratch_epochs=1)
        (tmp_path / "plan.json").write_text(plan.model_dump_json())
        out = tmp_path / f"run {turn}"
        run = hs.fit(tmp_path / f"{turn}.csv", out, Options(plan=str(tmp_path / "plan.json")), module=TinyNet())
        models.append((run.metrics["rungs"][0]["gain"], (out / "model.safetensors").read_bytes()))
        losses.append(run.metrics["test"]["models"]["final"]["log_loss"]["value"])
    assert losses[0] != losses[1]
    assert models[0] == models[1]


def test_a_new_model_does_not_lie_beside_the_old_one_s_proof(trained: Trained, tmp_path: Path, quick: None) -> None:
    def progress(description: str, total: int, unit: str = "images", /) -> Any:
        return _struck([0]) if description.startswith("Baseline") else runtime.silent(description, total, unit)

    run = shutil.copytree(trained.run, tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        hs.fit(trained.pictures, run, options(trained, seed=3), progress=progress, overwrite=True)
    assert {path.name for path in run.iterdir()} == {
        "config.json", "log.txt", "model.json", "model.safetensors", "trained_on.txt",
    }  # fmt: skip


def test_a_plan_may_lie_in_the_folder_that_it_replaces(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    monkeypatch.setenv("HEADSTART_CACHE", str(trained.cache))
    run = shutil.copytree(trained.run, tmp_path / "run")
    again = hs.fit(trained.pictures, run, options(trained, plan=str(run / "plan.json")), overwrite=True)
    assert again.plan.rungs == Plan.model_validate_json((trained.run / "plan.json").read_text()).rungs
    assert (run / "report.html").exists()


def test_pictures_in_the_report_are_as_the_backbone_sees_them(tmp_path: Path) -> None:
    """Turned as their EXIF says, 16 bits brought down to 8, transparency over white."""
    wide = Image.new("RGB", (64, 32), "red")
    exif = Image.Exif()
    exif[0x0112] = 6
    grey = Image.fromarray(np.full((32, 32), 32768, np.uint16))
    shapes = {"turned.jpg": (32, 64), "grey.png": (32, 32), "clear.png": (32, 32)}
    wide.save(tmp_path / "turned.jpg", exif=exif)
    grey.save(tmp_path / "grey.png")
    Image.new("RGBA", (32, 32), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    paths = tuple(tmp_path / name for name in shapes)
    count = len(paths)
    zeros = np.zeros(count, np.int64)
    dataset = Dataset(
        FileImages(paths, tuple(shapes)),
        zeros,
        ("one",),
        np.array(["train"] * count),
        zeros,
        zeros,
        tuple("abc"),
        "x",
        frozenset(),
    )
    ((_, jpegs),) = _thumbnails(dataset)
    shown = [Image.open(io.BytesIO(jpeg)) for jpeg in jpegs]
    assert [picture.size for picture in shown] == list(shapes.values())
    assert [round(float(np.mean(picture))) for picture in shown[1:]] == [pytest.approx(128, abs=2), 255]


def test_sealed_pictures_run_through_the_network_after_everything_is_decided(trained: Trained, quick: None) -> None:
    told: list[tuple[str, int]] = []

    def progress(description: str, total: int, unit: str = "images", /) -> Any:
        told.append((description, total))
        return runtime.silent(description, total, unit)

    run = hs.fit(trained.pictures, None, options(trained), progress=progress)
    extracted = [place for place, (description, _) in enumerate(told) if description == "Extracting features"]
    counts = [told[place][1] for place in extracted]
    assert counts[:2] == [103, 27] == [len(run.dataset.indices(side)) for side in ("train", "test")]
    assert set(counts[2:]) <= {27}  # once more where a rung changed the network
    last = max(place for place, (description, _) in enumerate(told) if description.startswith(("Rung", "Baseline")))
    assert extracted[0] < last < extracted[1]


def test_a_run_whose_rung_answers_together_with_the_frozen_head(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    class Even(Ways):
        """For accuracy alone nothing would be kept."""

        def clearly_likelier(self, *given: Any, **more: Any) -> bool:
            return True

        def gain(self, *given: Any) -> tuple[float, float]:
            return 0.0, 1.0

    monkeypatch.setattr("headstart.judge.Ways", Even)
    out = tmp_path / "run"
    run = hs.fit(trained.pictures, out, options(trained))
    assert all(rung["kept"] and rung["together"] for rung in run.metrics["rungs"]) and run.metrics["rungs"]
    assert run.metrics["chosen"] == "finetuned"
    tuned, still = (engine.backbone for engine in run.model.engines)
    assert still.digest() == hs.load_backbone(BACKBONE, weights=trained.weights).digest() != tuned.digest()
    assert max(run.model.head.taps) >= len(STAGES), "the head reads the stages of both"
    assert run.metrics["unknown"] is not None
    assert "The original network answers together with it" in (out / "report.html").read_text()
    shown = sorted(trained.pictures.rglob("*.png"))[:9]
    one, other = run.model.predict(shown), hs.load(out).predict(shown)
    np.testing.assert_allclose(one.probabilities, other.probabilities, atol=1e-6)
    # Together, they answer as the test set was answered.
    told = {row["path"]: row["predicted"] for row in csv.DictReader(io.StringIO((out / "predictions.csv").read_text()))}
    found = run.model.predict([trained.pictures / path for path in told])
    assert list(found.labels) == list(told.values())


def test_what_is_no_side_of_a_picture_is_said_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UnknownBackbone, match=r"give 32 to 2048 pixels, such as tf_efficientnet_lite0@288"):
        hs.fit(tmp_path / "nowhere", tmp_path / "run", Options(backbone="tf_efficientnet_lite0@3"))
    assert not (tmp_path / "run").exists()
