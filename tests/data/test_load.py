from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from headstart.data.audit import SHOWN, Audit, Finding
from headstart.data.dataset import SPLITS, Dataset
from headstart.data.load import SMALL_POOL, audit, load_dataset
from headstart.data.readers import read
from headstart.errors import DataError, TooLittleData, UnreadableImage
from tests.data.pictures import class_folders, encoded, scene, write
from tests.data.test_facts import Shelf, bad_files


def kinds(report: Audit | None) -> dict[str, Finding]:
    assert report is not None
    return {found.kind: found for found in report.findings}


def sides(dataset: Dataset) -> dict[str, str]:
    return dict(zip(dataset.names, dataset.split.tolist(), strict=True))


def noise(count: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    pictures = np.random.default_rng(seed).integers(0, 256, (count, 12, 12), dtype=np.uint8)
    return pictures, np.arange(count) % classes


def test_a_data_set_is_whole_and_every_picture_has_one_side() -> None:
    dataset = load_dataset(noise(200, 4))
    assert (len(dataset), dataset.classes) == (200, ("0", "1", "2", "3"))
    assert (dataset.labels.dtype, dataset.fold.dtype, dataset.groups.dtype) == (np.int64, np.int64, np.int64)
    assert sorted(np.concatenate([dataset.indices(side) for side in SPLITS]).tolist()) == list(range(200))
    assert dataset.counts("test").tolist() == [10] * 4
    assert set(dataset.fold[dataset.indices("train")].tolist()) == set(range(5))
    assert set(dataset.fold[dataset.indices("test")].tolist()) == {-1}
    assert all(dataset.images.content(i) == dataset.digests[i] for i in range(200))
    assert dataset.audit is not None
    assert dataset.audit.splits == {"train": 160, "val": 0, "test": 40}


def test_splits_follow_contents_and_not_names_or_order(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "a", {"x": 70, "y": 70})
    first = load_dataset(root)
    for number, path in enumerate(sorted(root.rglob("*.png"), reverse=True)):
        target = tmp_path / "b" / path.parent.name / "deeper" / f"renamed {number}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    second = load_dataset(tmp_path / "b")
    assert first.names != second.names
    assert first.digest == second.digest
    assert first.digest != load_dataset(root, seed=1).digest
    by_content = dict(zip(first.digests, first.split.tolist(), strict=True))
    assert by_content == dict(zip(second.digests, second.split.tolist(), strict=True))


def test_bad_files_are_skipped_and_named_or_fatal(tmp_path: Path) -> None:
    root = class_folders(tmp_path, {"x y": 3, "ünï": 3})
    bad_files(root / "x y")
    dataset = load_dataset(root)
    assert len(dataset) == 6
    found = kinds(dataset.audit)["unreadable"]
    assert (found.severity, found.total) == ("warning", 5)  # the pipe and the folder are no files
    assert "x y/empty.jpg: the file is empty (0 bytes)" in found.items
    with pytest.raises(UnreadableImage, match=r"5 pictures of 11 cannot be read: x y/empty\.jpg: the file"):
        load_dataset(root, unreadable="error")


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ({"only": 5}, r"Got one class \('only'\) with usable pictures\. Expected at least two classes"),
        ({"a": 1, "b": 1}, "No class has more than one picture"),
    ],
)
def test_too_little_data_is_an_error_and_yet_can_be_inspected(
    tmp_path: Path, counts: dict[str, int], words: str
) -> None:
    root = class_folders(tmp_path, counts)
    with pytest.raises(TooLittleData, match=words):
        load_dataset(root)
    report = audit(root)
    assert report.errors
    assert report.ordered()[0].severity == "error"
    assert report.images == sum(counts.values())


def test_a_folder_of_nothing_but_bad_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        bad_files(tmp_path / name)
    with pytest.raises(UnreadableImage, match=r"cannot be read: (.|\n)*Got no class with usable pictures"):
        load_dataset(tmp_path)


def test_copies_are_kept_once(tmp_path: Path) -> None:
    root = class_folders(tmp_path, {"x": 4, "y": 4})
    shutil.copy(root / "x" / "0.png", root / "x" / "copy.png")
    shutil.copy(root / "x" / "0.png", root / "x" / "other.png")
    dataset = load_dataset(root)
    assert len(dataset) == 8
    found = kinds(dataset.audit)["duplicates"]
    assert (found.total, found.items) == (2, ("x/copy.png = x/0.png", "x/other.png = x/0.png"))


def test_one_file_named_twice_is_no_copy_to_delete(tmp_path: Path) -> None:
    root = class_folders(tmp_path, {"x": 4, "y": 4})
    (root / "x" / "link.png").symlink_to(root / "x" / "0.png")
    (root / "x" / "hard.png").hardlink_to(root / "x" / "1.png")
    dataset = load_dataset(root)
    found = kinds(dataset.audit)
    assert len(dataset) == 8 and "duplicates" not in found
    assert (
        found["links"].items == ("x/hard.png = x/1.png", "x/link.png = x/0.png")
        and "Do not delete" in found["links"].next_step
    )


def test_one_picture_under_two_labels_stays_on_one_side(tmp_path: Path) -> None:
    root = class_folders(tmp_path, {"x": 80, "y": 80})
    for number in range(40):
        shutil.copy(root / "x" / f"{number}.png", root / "y" / f"also {number}.png")
    dataset = load_dataset(root)
    side = sides(dataset)
    fold = dict(zip(dataset.names, dataset.fold.tolist(), strict=True))
    pairs = [(f"x/{number}.png", f"y/also {number}.png") for number in range(40)]
    assert all((side[a], fold[a]) == (side[b], fold[b]) for a, b in pairs)
    assert kinds(dataset.audit)["conflict"].total == 40
    assert "x/0.png (x) = y/also 0.png (y)" in kinds(dataset.audit)["conflict"].items


def test_near_duplicates_share_a_side_and_a_fold(tmp_path: Path) -> None:
    root = class_folders(tmp_path, {"x": 70, "y": 70})
    for seed in range(70):
        scene(seed).resize((192, 160), Image.Resampling.BICUBIC).save(root / "x" / f"again {seed}.jpg", quality=80)
    dataset = load_dataset(root)
    assert len(dataset) == 210
    side = sides(dataset)
    fold = dict(zip(dataset.names, dataset.fold.tolist(), strict=True))
    assert all(side[f"x/{n}.png"] == side[f"x/again {n}.jpg"] for n in range(70))
    assert all(fold[f"x/{n}.png"] == fold[f"x/again {n}.jpg"] for n in range(70))
    assert kinds(dataset.audit)["near_duplicates"].message.startswith("140 pictures nearly the same as another")


def tinted(root: Path, light: dict[str, tuple[float, float, float]], sides: dict[str, range]) -> Path:
    """Drawings in one colour for each class: `sides[side/class]` numbers the drawings."""
    for place, numbers in sides.items():
        for number in numbers:
            grey = np.asarray(scene(number).convert("L"))[..., None]
            picture = Image.fromarray((grey * np.array(light[place.split("/")[1]])).astype(np.uint8))
            (root / place).mkdir(parents=True, exist_ok=True)
            picture.save(root / place / f"{number}.png")
    return root


def test_pictures_that_differ_in_colour_alone_are_no_leaks(tmp_path: Path) -> None:
    light = {"ripe": (1.0, 0.35, 0.2), "unripe": (0.3, 0.9, 0.3)}
    sides = {"train/ripe": range(20), "test/ripe": range(20, 40)}
    sides |= {"train/unripe": range(20, 40), "test/unripe": range(20)}
    dataset = load_dataset(tinted(tmp_path, light, sides))
    assert len(dataset) == 80
    assert not {"near_duplicates", "near_conflict", "near_leak"} & set(kinds(dataset.audit))


def test_near_duplicates_with_different_labels_are_named_and_never_dropped(tmp_path: Path) -> None:
    light = {"fresh": (0.9, 0.8, 0.7), "stale": (0.88, 0.8, 0.72)}  # nearer than thumbnails tell
    sides = {"train/fresh": range(20), "test/fresh": range(20, 40)}
    sides |= {"train/stale": range(20, 40), "test/stale": range(20)}
    dataset = load_dataset(tinted(tmp_path, light, sides))
    found = kinds(dataset.audit)
    assert len(dataset) == 80 and "near_leak" not in found
    assert found["near_conflict"].total == 40 and "None is dropped" in found["near_conflict"].next_step
    assert found["near_duplicates"].next_step.endswith("with different labels, where the given splits have them.")
    assert len(set(dataset.groups.tolist())) == 80


def test_a_class_that_leaks_use_up_is_told_with_them(tmp_path: Path) -> None:
    class_folders(tmp_path / "train", {"x": 6, "y": 6})
    class_folders(tmp_path / "test", {"x": 6, "y": 1}, first_seed=50)
    for number in range(6):
        scene(6 + number).resize((192, 160)).save(tmp_path / "test" / "y" / f"larger {number}.png")
    with pytest.raises(
        TooLittleData, match=r"Got one class \('x'\)(.|\n)*6 pictures nearly the same as one in a more sealed"
    ):
        load_dataset(tmp_path)


def test_sizes_formats_and_given_groups_go_with_their_pictures(tmp_path: Path) -> None:
    rows = []
    for seed, (name, size, group) in enumerate(
        [("a.png", (40, 30), ""), ("b.jpg", (30, 50), "one"), ("c.jpg", (30, 60), "")]
    ):
        scene(seed, *size).save(tmp_path / name)
        rows.append(f"{name},{'xy'[seed % 2]},{group}")
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no picture")
    (tmp_path / "t.csv").write_text("\n".join(["path,label,group", "broken.jpg,x,two", *rows]))
    dataset = load_dataset(tmp_path / "t.csv")
    known = dataset.select([2, 0]).particulars
    assert known is not None and known.sizes.tolist() == [[30, 60], [40, 30]]
    assert known.formats == ("JPEG, RGB", "PNG, RGB")
    assert dataset.particulars is not None and dataset.particulars.groups == ("", "one", "")


def test_given_groups_stay_together(tmp_path: Path) -> None:
    rows = []
    for seed in range(150):
        write(tmp_path / f"{seed}.png", seed)
        rows.append(f"{seed}.png,{'xy'[seed % 2]},patient {seed // 6}")
    (tmp_path / "t.csv").write_text("\n".join(["path,label,group", *rows]))
    dataset = load_dataset(tmp_path / "t.csv")
    assert dataset.indices("test").size >= 20
    assert dataset.audit is not None and dataset.audit.groups == 25
    for start in range(0, 150, 6):
        members = [list(dataset.names).index(f"{seed}.png") for seed in range(start, start + 6)]
        assert len(set(dataset.split[members].tolist())) == 1
        assert len(set(dataset.fold[members].tolist())) == 1
        assert len(set(dataset.groups[members].tolist())) == 1


def test_groups_too_large_for_a_test_set_are_told(tmp_path: Path) -> None:
    rows = []
    for seed in range(SMALL_POOL):
        write(tmp_path / f"{seed}.png", seed)
        rows.append(f"{seed}.png,{'xy'[seed % 2]},dish {seed % 2 ^ (seed % 3 == 0)}")
    (tmp_path / "t.csv").write_text("\n".join(["path,label,group", *rows]))
    told = load_dataset(tmp_path / "t.csv")
    found = kinds(told.audit)["no_test"]
    assert told.indices("test").size == 0 and found.severity == "warning"
    assert found.message.startswith("The pictures are of 2 groups: too few, or too large")
    assert "other groups" in found.next_step


def test_a_group_in_two_given_splits_is_told(tmp_path: Path) -> None:
    root = class_folders(tmp_path, {"x": 12, "y": 12})
    rows = [
        f"{kind}/{n}.png,{kind},{'test' if n % 4 == 3 else 'train'},{f'{kind}{n // 4}' if n < 8 else ''}"
        for kind in ("x", "y")
        for n in range(12)
    ]
    (root / "t.csv").write_text("\n".join(["path,label,split,group", *rows]))
    found = kinds(load_dataset(root / "t.csv").audit)["parted"]
    assert found.severity == "warning" and found.items == ("x0", "x1", "y0", "y1")


def test_a_table_whose_files_are_not_there_says_so(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path,label\n" + "".join(f"x{n}.jpg,{'ab'[n % 2]}\n" for n in range(20)))
    with pytest.raises(
        UnreadableImage, match=r"20 pictures of 20 cannot be read: x0\.jpg: no such file .*relative to its folder"
    ):
        load_dataset(tmp_path / "t.csv")


def test_what_is_in_two_given_splits_stays_sealed(tmp_path: Path) -> None:
    for number, split in enumerate(("train", "val", "test")):
        class_folders(tmp_path / split, {"x": 6, "y": 6}, first_seed=100 * number)
    shutil.copy(tmp_path / "test" / "x" / "0.png", tmp_path / "train" / "x" / "leak.png")
    shutil.copy(tmp_path / "test" / "x" / "1.png", tmp_path / "train" / "y" / "leak, other label.png")
    shutil.copy(tmp_path / "val" / "y" / "0.png", tmp_path / "train" / "y" / "leak of val.png")
    scene(202).resize((192, 160), Image.Resampling.BICUBIC).save(tmp_path / "val" / "x" / "near.jpg")
    dataset = load_dataset(tmp_path)
    side = sides(dataset)
    assert not {name for name in side if "leak" in name or "near" in name}
    assert side["test/x/0.png"] == side["test/x/2.png"] == "test"
    assert side["val/y/0.png"] == "val"
    found = kinds(dataset.audit)
    assert (found["leak"].total, found["near_leak"].total, found["conflict"].total) == (3, 1, 1)
    assert found["near_leak"].items == ("test/x/2.png ~ val/x/near.jpg",)


@pytest.mark.parametrize(
    ("given", "used"),
    [
        (("train", "val", "test"), {"train": 8, "val": 8, "test": 8}),
        (("train", "val"), {"train": 8, "val": 0, "test": 8}),
        (("train", "test"), {"train": 8, "val": 0, "test": 8}),
        (("train",), {"train": 8, "val": 0, "test": 0}),
    ],
)
def test_given_splits_are_respected(tmp_path: Path, given: tuple[str, ...], used: dict[str, int]) -> None:
    for number, split in enumerate(given):
        class_folders(tmp_path / split, {"x": 4, "y": 4}, first_seed=100 * number)
    dataset = load_dataset(tmp_path)
    assert dataset.audit is not None
    assert dataset.audit.splits == used
    assert dataset.given == set(given)
    assert set(dataset.fold[dataset.indices("train")].tolist()) == {0, 1, 2, 3}
    assert all(set(dataset.fold[dataset.indices(side)].tolist()) <= {-1} for side in ("val", "test"))
    if given == ("train", "val"):
        assert kinds(dataset.audit)["splits"].message.startswith("The given 'val' is kept sealed as the test set")
    if given == ("train",):
        assert kinds(dataset.audit)["splits"].message == "Only a train split is given: a test set is cut from it."


def test_a_val_that_lacks_a_class_does_not_judge(tmp_path: Path) -> None:
    class_folders(tmp_path / "train", {"x": 4, "y": 4, "z": 4, "lone": 1})
    class_folders(tmp_path / "val", {"x": 4, "y": 4}, first_seed=50)
    class_folders(tmp_path / "test", {"x": 2, "y": 2, "z": 2}, first_seed=80)
    dataset = load_dataset(tmp_path)
    found = kinds(dataset.audit)["unvalidated"]
    assert (found.severity, found.items) == ("warning", ("z",)), "folds could not hold 'lone' out, either"
    assert "8 pictures of 'val' are not used; folds are cut from 'train'." in found.message
    assert not dataset.indices("val").size, "what judging goes by: the planner then takes folds"
    assert len(dataset) == len(dataset.names) == 19
    assert dataset.audit is not None
    assert dataset.audit.splits == {"train": 13, "val": 0, "test": 6} and dataset.audit.usable == 19
    class_folders(tmp_path / "val", {"z": 1}, first_seed=99)
    whole = load_dataset(tmp_path)
    assert "unvalidated" not in kinds(whole.audit) and whole.indices("val").size == 9


def test_a_class_without_training_pictures_is_left_out(tmp_path: Path) -> None:
    class_folders(tmp_path / "train", {"x": 4, "y": 4})
    class_folders(tmp_path / "test", {"x": 2, "y": 2, "unheard": 2}, first_seed=50)
    dataset = load_dataset(tmp_path)
    assert dataset.classes == ("x", "y")
    assert kinds(dataset.audit)["untrained"].items == ("unheard",)


def test_small_data_is_not_split_and_large_is() -> None:
    small = load_dataset(noise(SMALL_POOL - 1, 2))
    assert small.counts("test").sum() == 0
    assert kinds(small.audit)["no_test"].message == "119 usable pictures are too few to seal some for a test."
    assert "no_test" not in kinds(load_dataset(noise(SMALL_POOL, 2)).audit)
    assert load_dataset(noise(SMALL_POOL, 2)).counts("test").sum() == 24


def test_a_class_of_one_picture_is_trained_on_dropped_or_fatal() -> None:
    pictures, labels = noise(151, 3)
    labels = labels.astype(str)
    labels[labels == "2"] = "0"
    labels[150] = "rare"
    kept = load_dataset((pictures, labels))
    assert kept.classes == ("0", "1", "rare")
    assert kept.split[kept.labels == 2].tolist() == ["train"]
    assert kinds(kept.audit)["rare"].items == kinds(kept.audit)["untested"].items == ("rare",)
    dropped = load_dataset((pictures, labels), rare="drop")
    assert (dropped.classes, len(dropped)) == (("0", "1"), 150)
    with pytest.raises(TooLittleData, match=r"1 class has one picture only: rare\. .*rare='train' or rare='drop'"):
        load_dataset((pictures, labels), rare="error")


def test_two_pictures_suffice() -> None:
    with pytest.raises(TooLittleData):
        load_dataset(noise(2, 2))
    three = load_dataset((noise(3, 2)[0], [0, 0, 1]))
    assert three.split.tolist() == ["train"] * 3
    assert three.audit is not None
    assert three.audit.folds == 2


def test_sizes_modes_imbalance_and_telltales_are_found(tmp_path: Path) -> None:
    root = class_folders(tmp_path, {"many": 60, "few": 5})
    scene(300, 20, 20).save(root / "many" / "tiny.png")
    scene(301, 500, 90).save(root / "many" / "long.png")
    scene(302).convert("L").save(root / "many" / "grey.png")
    for number in range(30):
        scene(400 + number).save(root / "few" / f"{number}.jpg")
        (root / "few" / f"{number}.png").unlink(missing_ok=True)
    found = kinds(load_dataset(root).audit)
    assert found["tiny"].items == ("many/tiny.png: 20 x 20",)
    assert found["elongated"].items == ("many/long.png: 500 x 90",)
    assert found["modes"].items == ("many/grey.png: L",)
    assert found["telltale"].message.startswith("The file format alone tells the class of 100% of the pictures")
    ratio = kinds(load_dataset((noise(111, 1)[0], [0] * 101 + [1] * 10)).audit)["imbalance"]
    assert ratio.message == "The largest class ('0', 101) has 10 times the pictures of the smallest ('1', 10)."
    assert "telltale" not in kinds(load_dataset(class_folders(tmp_path / "fair", {"a": 20, "b": 20})).audit)


@pytest.mark.parametrize("many", [1, 40])
def test_pictures_of_one_colour_are_told(tmp_path: Path, many: int) -> None:
    root = class_folders(tmp_path, {"a": 40 - many, "b": 3 if many == 1 else 0})
    for number in range(many):
        name = "ab"[number % 2]
        (root / name).mkdir(exist_ok=True)
        Image.new("RGB", (60 + number, 60), (200, 10 + number, 30)).save(root / name / f"blank {number}.png")
    found = kinds(audit(root))["blank"]
    assert (found.severity, found.total) == ("warning", many)
    if many == 1:
        assert found.message == "1 of 43 pictures is of one colour throughout."
        assert found.next_step == "Look at them, and remove those that failed."
    else:
        assert found.message == "40 of 40 pictures are of one colour throughout."
        assert found.next_step.startswith("There is nothing to learn from them but their colour.")


def test_16_bit_pictures_that_use_little_of_their_range_are_told(tmp_path: Path) -> None:
    for number in range(8):
        shown = np.asarray(scene(number).convert("L")).astype(np.uint16)
        (tmp_path / "ab"[number % 2]).mkdir(exist_ok=True)
        values = 257 * shown if number == 7 else 290 + shown // 4
        Image.fromarray(values).save(tmp_path / "ab"[number % 2] / f"{number}.tif")
    found = kinds(audit(tmp_path))
    assert "blank" not in found
    assert found["narrow"].message.startswith("7 of 8 16-bit pictures use 0.084 %")
    assert found["narrow"].message.endswith(" % of their range: of 256 grey levels they keep about 2.")
    assert "all by the same two values (these lie from 29" in found["narrow"].next_step
    assert found["narrow"].total == 7 and found["narrow"].items[0].startswith("a/0.tif: 29")


def test_classes_of_few_pictures_are_named() -> None:
    pictures = noise(50, 1)[0]
    found = kinds(load_dataset((pictures[:30], [0] * 20 + [1] * 8 + [2] * 2)).audit)["few"]
    assert found.items == ("1: 8", "2: 2")
    assert found.message == "2 classes have fewer than 10 pictures (1: 8; 2: 2)."
    assert found.next_step.startswith("Figures for them ")
    found = kinds(load_dataset((pictures[:28], [0] * 20 + [1] * 8)).audit)["few"]
    assert found.message == "1 class has fewer than 10 pictures (1: 8)."
    assert found.next_step.startswith("Figures for it ")
    found = kinds(load_dataset((pictures, [0] * 20 + [1] * 8 + [2] * 8 + [3] * 7 + [4] * 7)).audit)["few"]
    assert found.message == "4 classes have fewer than 10 pictures (1: 8; 2: 8; 3: 7; …)."


def test_the_audit_is_json_and_comes_back(tmp_path: Path) -> None:
    root = class_folders(tmp_path, {"<b>x": 3, "y\n,": 3})
    for number in range(SHOWN + 10):
        (root / "y\n,").joinpath(f"{number}.jpg").write_bytes(b"")
    report = load_dataset(root).audit
    assert report is not None
    text = report.model_dump_json()
    assert Audit.model_validate_json(text) == report
    unreadable = next(found for found in json.loads(text)["findings"] if found["kind"] == "unreadable")
    assert (len(unreadable["items"]), unreadable["total"]) == (SHOWN, SHOWN + 10)
    assert report.class_rows() == [("<b>x", 3, 3, 0, 0), ("y\n,", 3, 3, 0, 0)]
    with pytest.raises(ValueError, match="frozen"):
        report.images = 5  # type: ignore[misc]


def test_a_second_load_reads_from_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = class_folders(tmp_path, {"x": 70, "y": 70})
    shelf = Shelf()
    first = load_dataset(root, memory=shelf)
    monkeypatch.setattr("headstart.data.facts.decode", lambda *_: pytest.fail("decoded again"))
    second = load_dataset(root, memory=shelf)
    assert (first.digest, first.audit) == (second.digest, second.audit)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"unreadable": "ignore"}, "unreadable='ignore': expected one of 'skip', 'error'"),
        ({"rare": "keep"}, "rare='keep': expected one of 'train', 'drop', 'error'"),
        ({"test_fraction": 20}, r"test_fraction=20: expected a share between 0 and 1, such as 0\.2"),
        ({"folds": 1}, "folds=1: expected a whole number, 2 or more"),
        ({"folds": "5"}, "folds='5': expected a whole number, 2 or more"),
        ({"test_fraction": "0.2"}, "test_fraction='0.2': expected a share between 0 and 1"),
        ({"seed": -1}, "seed=-1: expected a whole number"),
    ],
)
def test_wrong_options_say_what_is_right(option: dict[str, object], words: str) -> None:
    with pytest.raises(DataError, match=words):
        load_dataset(noise(10, 2), **option)  # type: ignore[arg-type]


def test_progress_is_told_of_every_picture() -> None:
    from collections.abc import Iterator
    from contextlib import contextmanager

    told: list[int] = []

    @contextmanager
    def progress(description: str, total: int, unit: str = "images") -> Iterator[object]:
        assert (description, total) == ("Reading pictures", 130)
        yield lambda count=1, **fields: told.append(count)

    load_dataset(noise(130, 2), progress=progress)  # type: ignore[arg-type]
    assert sum(told) == 130


def test_the_room_needs_no_torch() -> None:
    code = "import sys, headstart.data.load; sys.exit('torch' in sys.modules or 'datasets' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_picture_of_another_kind_behind_its_ending_is_read(tmp_path: Path) -> None:
    root = class_folders(tmp_path, {"x": 2, "y": 2})
    (root / "x" / "really a png.jpg").write_bytes(encoded(scene(50), "PNG"))
    assert len(load_dataset(root)) == 5


def test_data_without_a_training_side_can_be_read_and_not_learnt_from(tmp_path: Path) -> None:
    for side in ("test", "val"):
        class_folders(tmp_path / "sides" / side, {"a": 2, "b": 2})
    assert set(read(tmp_path / "sides").split) == {"test", "val"}
    (tmp_path / "t.csv").write_text("path,label,split\nsides/test/a/0.png,x,test\n")
    assert read(tmp_path / "t.csv").split == ("test",)
    for source, got in ((tmp_path / "sides", "test, val"), (tmp_path / "t.csv", "test")):
        with pytest.raises(DataError, match=f"got pictures for {got} and none to train on"):
            load_dataset(source)


def test_a_folder_that_may_not_be_listed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refused)
    with pytest.raises(DataError, match=r"cannot list this folder \(Permission denied\)"):
        load_dataset(tmp_path)
