from __future__ import annotations

import gzip
import math
import os
import struct
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from numpy.typing import NDArray

from headstart.data.images import decode
from headstart.data.listing import Columns, Listing, natural
from headstart.data.load import audit
from headstart.data.readers import READERS, read
from headstart.errors import DataError, UnreadableImage
from tests.data.pictures import class_folders, encoded, pixels, scene, write


def summary(listing: Listing) -> set[tuple[str, str, str]]:
    return set(zip(listing.images.names, listing.labels, listing.split, strict=True))


def test_a_folder_per_class(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "fotos é 写真", {"class 2": 2, "class 10": 1})
    write(root / "class 2" / "deep" / "er" / "x y.JPG", 99)
    listing = read(root)
    assert summary(listing) == {
        ("class 2/0.png", "class 2", ""), ("class 2/1.png", "class 2", ""),
        ("class 10/0.png", "class 10", ""),
        ("class 2/deep/er/x y.JPG", "class 2", ""),
    }  # fmt: skip
    assert read(str(root)).images.names == listing.images.names
    assert all(decode(listing.images.open(i)).size == (96, 80) for i in range(4))


def test_classes_sort_as_people_count() -> None:
    assert sorted(["b", "class 10", "class 2", "A", "10", "9", "²", "É"], key=natural)[:3] == ["9", "10", "A"]
    assert sorted(["class 10", "class 2", "Class 1"], key=natural) == ["Class 1", "class 2", "class 10"]


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Validation"])
def test_split_folders(tmp_path: Path, val: str) -> None:
    for split in ("train", val, "test"):
        class_folders(tmp_path / split, {"cat": 1, "dog": 1})
    listing = read(tmp_path)
    assert listing.layout == "split folders"
    assert summary(listing) == {
        (f"{folder}/{name}/0.png", name, split)
        for folder, split in (("train", "train"), (val, "val"), ("test", "test"))
        for name in ("cat", "dog")
    }


def test_a_class_called_train_is_no_split(tmp_path: Path) -> None:
    listing = read(class_folders(tmp_path, {"train": 2, "bus": 2, "car": 2}))
    assert (set(listing.labels), set(listing.split)) == ({"train", "bus", "car"}, {""})


def test_a_lone_wrapper_is_followed_and_a_lone_train_is_a_split(tmp_path: Path) -> None:
    class_folders(tmp_path / "wrapped" / "photos" / "photos", {"cat": 1, "dog": 1})
    listing = read(tmp_path / "wrapped")
    assert set(listing.labels) == {"cat", "dog"}
    assert listing.notes == (
        "The only folder 'photos' was followed to find the classes.",
        "The only folder 'photos' was followed to find the classes.",
    )
    class_folders(tmp_path / "lone" / "train", {"cat": 1, "dog": 1})
    assert set(read(tmp_path / "lone").split) == {"train"}


def test_splits_below_the_classes(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        class_folders(tmp_path / name, {"train": 3, "Validation": 1, "test": 2})
    write(tmp_path / "cat" / "train" / "deeper" / "0.png", 50)
    (tmp_path / "dog" / "empty").mkdir()
    listing = read(tmp_path)
    assert listing.layout == "split folders"
    sides = {"train": "train", "Validation": "val", "test": "test"}
    assert {(name.split("/")[0], sides[name.split("/")[1]]) for name in listing.images.names} == set(
        zip(listing.labels, listing.split, strict=True)
    )
    assert [listing.split.count(side) for side in ("train", "val", "test")] == [7, 2, 4]
    assert listing.notes == ("The splits lie below the classes (cat/train): read as train, val, test.",)
    class_folders(tmp_path / "dog", {"training": 1}, first_seed=90)
    with pytest.raises(DataError, match="dog: two folders in it, 'training' one of them, name the train"):
        read(tmp_path)


@pytest.mark.parametrize("more", ["fox/0.png", "fox/deeper/0.png", "dog/0.png", "dog/indoors/0.png"])
def test_folders_called_like_splits_in_some_classes_are_none(tmp_path: Path, more: str) -> None:
    for name in ("cat", "dog"):
        class_folders(tmp_path / name, {"train": 2, "test": 2})
    write(tmp_path / more, 50)
    listing = read(tmp_path)
    assert (set(listing.split), listing.layout, listing.notes) == ({""}, "class folders", ())
    (warning,) = listing.warnings
    assert warning.startswith("'cat' has folders for training and test in it, which are mixed")


def test_a_class_whose_name_is_stored_in_two_ways_is_one_and_told(tmp_path: Path) -> None:
    class_folders(tmp_path, {"caf\u00e9": 2, "cafe\u0301": 3, "bar": 2})
    if len(list(tmp_path.iterdir())) < 3:
        pytest.skip("this file system composes accents by itself")
    listing = read(tmp_path)
    assert listing.labels.count("caf\u00e9") == 5
    assert listing.notes == (
        "2 folders are called 'caf\u00e9', with accents stored in different ways (NFC, NFD): read as one class.",
    )
    notes = [found.message for found in audit(tmp_path).findings if found.kind == "layout"]
    assert notes == list(listing.notes)


@pytest.mark.parametrize("others", [("test",), ("val", "test")])
def test_pictures_without_classes_beside_train_are_no_class(tmp_path: Path, others: tuple[str, ...]) -> None:
    class_folders(tmp_path / "train", {"cat": 2, "dog": 2})
    class_folders(tmp_path, dict.fromkeys(others, 3), first_seed=50)
    listing = read(tmp_path)
    assert (set(listing.labels), set(listing.split)) == ({"cat", "dog"}, {"train"})
    assert dict(listing.ignored) == {f"pictures in {name}/ (no class folders in it)": 3 for name in others}
    assert not listing.warnings


def test_a_class_called_train_with_folders_in_it_is_warned_of(tmp_path: Path) -> None:
    class_folders(tmp_path / "train", {"steam": 2, "diesel": 2})
    class_folders(tmp_path, {"bus": 2}, first_seed=50)
    listing = read(tmp_path)
    assert (set(listing.labels), set(listing.split)) == ({"train", "bus"}, {""})
    assert listing.warnings == (
        "'train' has folders in it, and is taken for a class as 'bus' beside it has none. If it holds what to train on, with a "
        "folder for each class, move 'bus' elsewhere.",
    )
    found = audit(tmp_path).findings
    assert ("layout", "warning") in {(each.kind, each.severity) for each in found}


def test_hidden_files_other_files_and_strays_are_counted(tmp_path: Path) -> None:
    root = class_folders(tmp_path, {"cat": 1, "dog": 1})
    for name in (".DS_Store", "cat/.hidden.png", "cat/Thumbs.db", "__MACOSX/cat/._0.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    (root / "cat" / "notes.txt").write_text("x")
    (root / "README").write_text("x")
    write(root / "stray.png", 5)
    listing = read(root)
    assert len(listing.labels) == 2
    assert dict(listing.ignored) == {
        "hidden": 4, ".txt files": 1, "files without an ending": 1, "pictures outside any class folder": 1,
    }  # fmt: skip


def test_folders_beside_the_splits_are_counted_and_left(tmp_path: Path) -> None:
    for split in ("train", "test", "unlabelled"):
        class_folders(tmp_path / split, {"cat": 2, "dog": 1})
    listing = read(tmp_path)
    assert set(listing.split) == {"train", "test"}
    assert dict(listing.ignored) == {"pictures in unlabelled/ (not train, val or test)": 3}


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "root", {"cat": 1, "dog": 1})
    class_folders(tmp_path / "elsewhere", {"inner": 3}, first_seed=50)
    (root / "bird").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (root / "cat" / "back").symlink_to(root, target_is_directory=True)
    (root / "cat" / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (root / "cat" / "self.jpg").symlink_to("self.jpg")
    (root / "self").symlink_to("self")
    listing = read(root)
    assert sorted(listing.labels) == ["bird"] * 3 + ["cat"] * 3 + ["dog"]
    assert dict(listing.ignored) == {"links that lead back": 1, "not regular files": 1}


def test_a_folder_that_goes_away_meanwhile_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (class_folders(tmp_path, {"cat": 1, "dog": 1}) / "gone").mkdir()
    scandir = os.scandir

    def before_it_went(path: Path) -> list[os.DirEntry[str]]:
        found = list(scandir(path))
        if path == tmp_path:
            (tmp_path / "gone").rmdir()
        return found

    monkeypatch.setattr("headstart.data.folders.os.scandir", before_it_went)
    with pytest.raises(DataError, match=r"gone: cannot list this folder \(No such file"):
        read(tmp_path)


def test_a_named_pipe_is_passed_by(tmp_path: Path) -> None:
    root = class_folders(tmp_path, {"cat": 1, "dog": 1})
    os.mkfifo(root / "cat" / "pipe.jpg")
    assert dict(read(root).ignored) == {"not regular files": 1}


def test_undecodable_names_become_printable(tmp_path: Path) -> None:
    root = class_folders(tmp_path, {"cat": 1})
    folder = os.fsencode(root) + b"/caf\xe9"
    os.mkdir(folder)  # noqa: PTH102  (the name is bytes)
    Path(os.fsdecode(folder), "x.png").write_bytes(encoded(scene(3), "PNG"))
    listing = read(root)
    assert set(listing.labels) == {"cat", "caf\\udce9"}
    assert all(name.encode() for name in listing.images.names)
    assert all(decode(listing.images.open(i)).mode == "RGB" for i in range(2))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda root: None, r"no pictures in this folder \(found nothing\)\.\nExpected one folder per class"),
        (lambda root: (root / "a.txt").write_text(""), r"no pictures in this folder \(found 1 \.txt files\)"),
        (lambda root: write(root / "a.png", 1), "got 1 pictures directly in '.*' and no class folders"),
        (lambda root: [class_folders(root / name, {"a": 1}) for name in ("train", "val", "valid")],
         "'val' and 'valid' both name the val split"),
    ],
)  # fmt: skip
def test_folders_that_cannot_be_read_say_what_was_expected(tmp_path: Path, make: object, words: str) -> None:
    assert callable(make)
    make(tmp_path)
    with pytest.raises(DataError, match=words):
        read(tmp_path)


def test_a_folder_with_a_table_in_it_hints_at_the_table(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("path,label\na.png,x\n")
    hint = r"There is a table 'labels\.csv' in it.* give that instead:  .*labels\.csv"
    write(tmp_path / "a.png", 2)
    with pytest.raises(DataError, match=hint):
        read(tmp_path)
    (tmp_path / "a.png").unlink()
    write(tmp_path / "images" / "a.png", 1)
    with pytest.raises(DataError, match=hint):
        read(tmp_path)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("nowhere", r"nowhere: no such file or folder\. Check the spelling"),
        ("train-images-idx3-ubyte.gz", r"Give the folder that it lies in"),
        ("a.zip", r"a file ending in '\.zip', which is not a layout .* Unpack it first"),
        ("a.jpg", r"a file ending in '\.jpg', which is not a layout of labelled pictures"),
        (
            3.5,
            r"Got a builtins\.float, which is not a layout of labelled pictures\.\nExpected one folder",
        ),
        ((1, 2, 3), r"Got a builtins\.tuple"),
        ({"train": 1}, r"a dict with the key 'train'\. Expected train, val or test, each with a tuple"),
        ({}, r"Got a dict of nothing\. Expected at least 'train'"),
    ],
)
def test_anything_else_says_what_was_got(tmp_path: Path, source: object, words: str) -> None:
    for name in ("a.zip", "a.jpg", "train-images-idx3-ubyte.gz"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataError, match=words):
        read(tmp_path / source if isinstance(source, str) else source)


TABLE = "path,label,split,group\nimg/a.png,cat,train,g1\n{root}/img/b b.png,dog,valid,\nimg/c.png,cat,test,g1\n"


@pytest.mark.parametrize("kind", ["csv", "semicolon", "tsv", "bom", "parquet"])
def test_tables(tmp_path: Path, kind: str) -> None:
    for seed, name in enumerate(("a", "b b", "c")):
        write(tmp_path / "img" / f"{name}.png", seed)
    text = TABLE.format(root=tmp_path)
    table = tmp_path / f"labels.{kind if kind in ('tsv', 'parquet') else 'csv'}"
    if kind == "parquet":
        header, *rows = [line.split(",") for line in text.splitlines()]
        columns = {name: [row[i] or None for row in rows] for i, name in enumerate(header)}
        pyarrow.parquet.write_table(pyarrow.table(columns), table)
    else:
        text = text.replace(",", {"semicolon": ";", "tsv": "\t"}.get(kind, ","))
        table.write_text(text, encoding="utf-8-sig" if kind == "bom" else "utf-8")
    listing = read(table)
    assert (listing.labels, listing.split) == (("cat", "dog", "cat"), ("train", "val", "test"))
    assert listing.group == ("g1", "", "g1")
    assert [decode(listing.images.open(i)).size for i in range(3)] == [(96, 80)] * 3


def test_columns_that_were_named_have_to_be_there(tmp_path: Path) -> None:
    write(tmp_path / "a.png", 1)
    (tmp_path / "t.csv").write_text("path,label\na.png,7\n")
    assert read(tmp_path / "t.csv").group == ("",), "the usual ones need not be"
    for columns, option in (
        (Columns(group="plnt"), "--group-column NAME"),
        (Columns(split="Split"), "split_column=..."),
    ):
        with pytest.raises(DataError, match=rf"no column '(plnt|Split)' among path, label.*{option}"):
            read(tmp_path / "t.csv", columns)


def test_columns_of_a_table_by_option(tmp_path: Path) -> None:
    write(tmp_path / "a.png", 1)
    (tmp_path / "t.csv").write_text("file,species\na.png,7\n")
    assert read(tmp_path / "t.csv", Columns(label="species", path="file")).labels == ("7",)
    with pytest.raises(
        DataError, match=r"no column 'path' among file, species\. Name the right one with --path-column NAME"
    ):
        read(tmp_path / "t.csv")
    (tmp_path / "t.csv").write_text(",".join(f"c{i}" for i in range(2000)))
    with pytest.raises(DataError, match=r"among c0, c1, [c0-9, ]*, c19, … \(2,000 columns\)\. Name"):
        read(tmp_path / "t.csv")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("path,label\n", "the table has a header and no rows"),
        ("", "no column 'path' among no columns"),
        ("path,label\na.png,\n", r"line 2: the cell 'label' is empty"),
        ("path,label\na.png,x\n,y\n", r"line 3: the cell 'path' is empty"),
        (
            "path,label,split\na.png,x,trian\n",
            r"line 2: split is 'trian'\. Expected train, val or test in every row",
        ),
        ("path,label,split\na.png,x,train\nb.png,x,\n", r"line 3: split is ''"),
        ('path,label\n\n"a\n.png",x\n\nb.png,\n', r"line 6: the cell 'label' is empty"),
        ("path,label, label\na.png,x,y\n", r"got 2 columns named 'label', expected one\. Rename"),
    ],
)
def test_tables_that_cannot_be_read_name_the_line(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DataError, match=words):
        read(tmp_path / "t.csv")


def test_a_table_in_another_encoding_says_so(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes("path,label\né.png,x\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"not UTF-8 text .* Save it as UTF-8 CSV"):
        read(tmp_path / "t.csv")
    (tmp_path / "t.parquet").write_bytes(b"nothing of the kind")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        read(tmp_path / "t.parquet")


def test_cells_of_parquet_that_cannot_be_told_say_so(tmp_path: Path) -> None:
    latin = pyarrow.array([b"\xe9.png"], pyarrow.binary())
    paths = pyarrow.Array.from_buffers(pyarrow.string(), 1, latin.buffers())
    for columns in (
        {"path": paths, "label": ["x"]},
        {"path": ["a.png"], "label": ["x"], "taken": pyarrow.array([2**62], pyarrow.timestamp("us"))},
    ):
        pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
        with pytest.raises(DataError, match="cannot be read as Parquet"):
            read(tmp_path / "t.parquet")


def idx(array: NDArray[np.uint8]) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


DIGITS = np.random.default_rng(0).integers(0, 256, (7, 9, 8), dtype=np.uint8)
NUMBERS = np.array([3, 1, 4, 1, 5, 9, 2], dtype=np.uint8)


@pytest.mark.parametrize("style", ["-idx3-ubyte.gz", ".idx3-ubyte", "-idx3-ubyte"])
def test_idx_files_as_mnist_is_distributed(tmp_path: Path, style: str) -> None:
    pack = gzip.compress if style.endswith(".gz") else bytes
    for part, rows in (("train", slice(0, 5)), ("t10k", slice(5, 7))):
        (tmp_path / f"{part}-images{style}").write_bytes(pack(idx(DIGITS[rows])))
        (tmp_path / f"{part}-labels{style.replace('idx3', 'idx1')}").write_bytes(pack(idx(NUMBERS[rows])))
    listing = read(tmp_path)
    assert listing.labels == ("3", "1", "4", "1", "5", "9", "2")
    assert listing.split == ("train",) * 5 + ("test",) * 2
    assert listing.images.names[4:6] == ("train[4]", "test[0]")
    assert np.array_equal(pixels(decode(listing.images.open(6)))[..., 0], DIGITS[6])


def test_damaged_idx_files_say_what_is_wrong(tmp_path: Path) -> None:
    images = tmp_path / "train-images-idx3-ubyte"
    images.write_bytes(idx(DIGITS))
    with pytest.raises(DataError, match="found 'train-images-idx3-ubyte' but not its counterpart"):
        read(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(NUMBERS))
    for content, words in (
        (idx(DIGITS)[:-1], "519 bytes where its header promises 520"),
        (b"\x89PNG....", "not an IDX file"),
        (gzip.compress(idx(DIGITS))[:-9], "cannot be read: .* Download it again"),
        (b"\0\0\x08\x03\0\0", "bytes where its header promises"),
    ):
        images.write_bytes(content)
        with pytest.raises(DataError, match=words):
            read(tmp_path)


@pytest.mark.parametrize("names", [("x", "y"), ("images", "labels")])
def test_npz_with_one_pair(tmp_path: Path, names: tuple[str, str]) -> None:
    np.savez(tmp_path / "d.npz", **{names[0]: DIGITS, names[1]: NUMBERS})
    assert read(tmp_path / "d.npz").labels == ("3", "1", "4", "1", "5", "9", "2")


@pytest.mark.parametrize("style", ["{}_train {}_val {}_test", "train_{} val_{} test_{}"])
def test_npz_with_splits(tmp_path: Path, style: str) -> None:
    parts = dict(zip(("train", "val", "test"), (slice(0, 3), slice(3, 5), slice(5, 7)), strict=True))
    names = ("x", "y") if style.startswith("{") else ("images", "labels")
    held = {}
    for pattern, rows in zip(style.split(), parts.values(), strict=True):
        held[pattern.format(names[0])], held[pattern.format(names[1])] = DIGITS[rows], NUMBERS[rows]
    np.savez(tmp_path / "d.npz", **held)
    listing = read(tmp_path / "d.npz")
    assert (listing.split.count("train"), listing.split.count("val"), listing.split.count("test")) == (
        3,
        2,
        2,
    )
    assert sorted(listing.labels) == sorted(str(number) for number in NUMBERS)


def test_npz_refuses_pickles_and_other_names(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.array([{}], dtype=object), y=NUMBERS[:1])
    with pytest.raises(DataError, match=r"cannot be read as \.npz of plain arrays"):
        read(tmp_path / "d.npz")
    np.savez(tmp_path / "e.npz", photographs=DIGITS)
    with pytest.raises(DataError, match=r"got the arrays photographs\. Expected x and y"):
        read(tmp_path / "e.npz")


def test_arrays_in_memory() -> None:
    colour = np.random.default_rng(0).integers(0, 256, (4, 6, 5, 3), dtype=np.uint8)
    for array, labels in (
        (colour, ["b", "a", "b", "a"]),
        (colour.astype(np.int64), np.array([1, 0, 1, 0])),
        (colour.astype(np.float32), np.array([1.0, 0.0, 1.0, 0.0])),
        (colour / 255.0, ("b", "a", "b", "a")),
    ):
        listing = read((array, labels))
        assert np.array_equal(pixels(decode(listing.images.open(2))), colour[2])
        assert listing.labels in {("b", "a", "b", "a"), ("1", "0", "1", "0")}
    for grey in (colour[..., 0], colour[..., :1]):
        assert np.array_equal(pixels(decode(read((grey, [0, 1, 0, 1])).images.open(1)))[..., 2], colour[1, ..., 0])
    for binary in (colour[..., 0] > 127, (colour[..., 0] > 127).astype(np.uint8)):
        assert np.array_equal(
            pixels(decode(read((binary, [0, 1, 0, 1])).images.open(0)))[..., 0] == 255,
            colour[0, ..., 0] > 127,
        )
    by_split = read({"train": (colour[:3], [0, 1, 0]), "test": (colour[3:], [1])})
    assert by_split.split == ("train", "train", "train", "test")


@pytest.mark.parametrize(
    ("images", "labels", "words"),
    [
        (np.zeros((4, 3, 8, 8)), [0] * 4, r"shape \(4, 3, 8, 8\).* Move the channels last:  numpy\.moveaxis"),
        (np.zeros((4, 8)), [0] * 4, r"got images of shape \(4, 8\)\. Expected \(N, H, W\)"),
        (
            np.zeros((4, 8, 8)),
            [0] * 3,
            r"got 4 images and labels of shape \(3,\)\. Expected one label per image",
        ),
        (np.zeros((4, 8, 8)), np.eye(4), r"labels of shape \(4, 4\)"),
        (np.zeros((4, 8, 8)), [0.5] * 4, "labels of type float64. Expected integers or strings"),
        (np.full((4, 8, 8), 300), [0] * 4, r"pixel values from 300 to 300\. Expected 0\.\.255"),
        (np.full((4, 8, 8), np.nan), [0] * 4, "pixel values from nan to nan"),
        (np.full((4, 8, 8), "x"), [0] * 4, "got images of type <U1"),
        (np.zeros((0, 8, 8)), [], "no pictures in it"),
        (np.zeros((4, 8, 8)), np.array(["a", None, "b", None], object), "2 of 4 labels are None"),
        (np.zeros((4, 8, 8)), np.array(["a", math.nan, "b", math.nan], object), "2 of 4 labels are nan"),
        (np.zeros((4, 8, 8)), ["a", math.nan, "b", "b"], "1 of 4 labels are nan"),
        (np.zeros((4, 8, 8)), [0.0, 1.0, math.nan, 1.0], "1 of 4 labels are nan"),
        (np.zeros((4, 8, 8)), ["a", "", "b", " "], "2 of 4 labels are empty"),
        (torch.zeros(4, 8, 8, requires_grad=True), [0] * 4, r"make no array: .* tensor\.detach\(\)\.cpu\(\)\.float"),
        (torch.zeros(4, 8, 8, dtype=torch.bfloat16), [0] * 4, r"make no array: .* tensor\.detach\(\)"),
        ([np.zeros((4, 4)), np.zeros((5, 4))], [0, 1], "make no array: .* Bring pictures to one size"),
    ],
)
def test_arrays_that_cannot_be_used(images: object, labels: object, words: str) -> None:
    with pytest.raises(DataError, match=words):
        read((images, labels))


def hub(count: int, first_seed: int = 0, label: str = "label") -> datasets.Dataset:
    features = datasets.Features({"image": datasets.Image(), label: datasets.ClassLabel(names=["cat", "dog"])})
    rows = {"image": [scene(first_seed + i) for i in range(count)], label: [i % 2 for i in range(count)]}
    return datasets.Dataset.from_dict(rows, features=features)


def test_hugging_face_data_sets() -> None:
    listing = read(hub(4))
    assert (listing.labels, listing.split) == (("cat", "dog", "cat", "dog"), ("",) * 4)
    assert np.array_equal(pixels(decode(listing.images.open(3))), pixels(scene(3)))
    both = read(datasets.DatasetDict({"train": hub(4), "validation": hub(2, 10, "label")}))
    assert both.split == ("train",) * 4 + ("val",) * 2
    assert both.images.names[4] == "val[0]"
    assert np.array_equal(pixels(decode(both.images.select([5, 1]).open(0))), pixels(scene(11)))
    assert read(hub(2, label="kind")).labels == ("cat", "dog")  # the only column of classes


def test_hugging_face_data_sets_whatever_they_are_turned_into() -> None:
    plain = read(hub(6))
    for other in (hub(6).with_format("torch"), hub(6).with_format("numpy"), hub(6).with_transform(lambda rows: rows)):
        listing = read(other)
        assert listing.labels == plain.labels
        assert [listing.images.content(i) for i in range(6)] == [plain.images.content(i) for i in range(6)]


def test_nothing_in_a_hugging_face_data_set_is_no_group_and_no_picture() -> None:
    part = hub(4).add_column("group", ["a", None, "a", None])
    assert read(part).group == ("a", "", "a", "")
    rows = {"image": [scene(1), None], "label": ["cat", "dog"]}
    kinds = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    with pytest.raises(UnreadableImage, match="neither bytes nor a path"):
        read(datasets.Dataset.from_dict(rows, features=kinds)).images.open(1)
    unlabelled = datasets.Dataset.from_dict({"image": [scene(1), scene(2)], "label": ["cat", None]}, features=kinds)
    with pytest.raises(DataError, match="gives 1 of 2 pictures no class"):
        read(unlabelled)
    with pytest.raises(DataError, match="two splits that mean val"):
        read(datasets.DatasetDict({"train": hub(2), "val": hub(2), "validation": hub(2)}))
    with pytest.raises(DataError, match="two keys that mean val"):
        read(dict.fromkeys(("train", "val", "validation"), (np.zeros((2, 8, 8)), [0, 1])))


def test_hugging_face_data_sets_that_cannot_be_read() -> None:
    for source, words in (
        (datasets.Dataset.from_dict({"text": ["a"]}), "the columns text and none of type Image"),
        (hub(2).to_iterable_dataset(), "Got a IterableDataset.* load it without streaming=True"),
        (datasets.DatasetDict({"test": hub(2)}), "the splits test. Expected one called 'train'"),
        (datasets.DatasetDict({"train": hub(2), "extra": hub(2)}), "has a split 'extra'"),
        (
            hub(2).cast_column("label", datasets.Value("int64")).rename_column("label", "kind"),
            "no 'label'. Name the one",
        ),
    ):
        with pytest.raises(DataError, match=words):
            read(source)


def test_every_entry_of_the_table_of_readers_keeps_the_contract(tmp_path: Path) -> None:
    write(tmp_path / "table" / "a.png", 1)
    write(tmp_path / "table" / "b.png", 2)
    (tmp_path / "table" / "t.csv").write_text("path,label\na.png,x\nb.png,y\n")
    (tmp_path / "idx").mkdir()
    (tmp_path / "idx" / "train-images-idx3-ubyte").write_bytes(idx(DIGITS[:2]))
    (tmp_path / "idx" / "train-labels-idx1-ubyte").write_bytes(idx(NUMBERS[:2]))
    np.savez(tmp_path / "d.npz", x=DIGITS[:2], y=NUMBERS[:2])
    samples = {
        "idx": tmp_path / "idx", "folder": class_folders(tmp_path / "folder", {"x": 1, "y": 1}),
        "table": tmp_path / "table" / "t.csv", "npz": tmp_path / "d.npz",
        "arrays": (DIGITS[:2], NUMBERS[:2]), "huggingface": hub(2),
    }  # fmt: skip
    assert set(samples) == {reader.name for reader in READERS}
    for reader in READERS:
        source = samples[reader.name]
        assert next(other.name for other in READERS if other.accepts(source)) == reader.name
        images = reader.read(source, Columns()).images
        assert len(images) == len(images.names) == len(set(images.names)) == 2
        contents = [images.content(i) for i in range(2)]
        assert len(set(contents)) == 2
        assert all(len(bytes.fromhex(content)) == 32 for content in contents)
        for i in range(2):
            content, open_picture = images.fetch(i)
            assert content == contents[i]
            assert np.array_equal(pixels(decode(open_picture())), pixels(decode(images.open(i))))
        swapped = images.select([1, 0])
        assert ([swapped.content(0)], list(swapped.names)) == ([contents[1]], list(images.names)[::-1])


def test_a_row_without_a_class_is_said() -> None:
    source = hub(3)
    table = source.data.table.set_column(1, "label", [[0, -1, 1]])
    unlabelled = datasets.Dataset(table, fingerprint="x", info=source.info)
    with pytest.raises(DataError, match="gives 1 of 3 pictures no class"):
        read(unlabelled)
