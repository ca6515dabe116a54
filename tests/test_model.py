"""A model answers files, pictures and arrays alike, one by one or many, and says what it could not read."""

from __future__ import annotations

import copy
import io
import os
import pickle
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from headstart.backbones.backbone import Backbone
from headstart.backbones.from_module import load_module
from headstart.data.images import views_of
from headstart.heads import Head
from headstart.model import Model, Predictions
from tests.toys import SPEC, TinyNet, stripes, tiny_backbone


@pytest.fixture
def model() -> Model:
    backbone: Backbone = tiny_backbone()
    draw = np.random.default_rng(0)
    weight, bias = draw.standard_normal((16, 3)).astype(np.float32), np.zeros(3, np.float32)
    return Model(backbone, Head("ridge", (2, 4), 1e-4, weight, bias), ("a", "b", "c"), temperature=2.0)


def test_files_pictures_and_arrays_are_answered_alike(model: Model, tmp_path: Path) -> None:
    pictures, _ = stripes(5)
    paths = [tmp_path / f"{n}.png" for n in range(5)]
    for path, picture in zip(paths, pictures, strict=True):
        Image.fromarray(picture).save(path)
    expected = model.predict(paths)
    for source in ([str(path) for path in paths], list(pictures)):
        assert np.array_equal(model.predict(source).probabilities, expected.probabilities)
    large = tmp_path / "large.jpg"  # decoded at reduced scale, whoever opened it
    Image.fromarray(pictures[0]).resize((640, 480)).save(large)
    with ExitStack() as stack:
        opened = [stack.enter_context(Image.open(path)) for path in [*paths, large]]
        found = model.predict(opened).probabilities
        assert opened[-1].size == (640, 480) and opened[-1].getpixel((639, 479))  # as the caller left it
    assert np.array_equal(found, model.predict([*paths, large]).probabilities)
    assert [row.path for row in expected] == [str(path) for path in paths]
    assert [row.path for row in model.predict(list(pictures))] == [f"[{n}]" for n in range(5)]


def test_probabilities_are_the_softmax_of_cooled_logits(model: Model) -> None:
    pictures, _ = stripes(20)
    found: Predictions = model.predict(list(pictures))
    logits = model.logits(pictures)
    exact = np.exp(logits / 2.0) / np.exp(logits / 2.0).sum(1, keepdims=True)
    np.testing.assert_allclose(found.probabilities, exact, rtol=1e-4)
    for row, shares in zip(found, found.probabilities, strict=True):
        order = np.argsort(-shares)
        assert (row.label, row.second) == (model.classes[order[0]], model.classes[order[1]])
        assert (row.probability, row.second_probability) == (shares[order[0]], shares[order[1]])
    assert found.labels == [row.label for row in found]
    assert len(found) == 20 and found[3] is found.rows[3]


def test_what_cannot_be_read_has_a_reason_and_no_numbers(model: Model, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    good = stripes(1)[0][0]
    asked = [
        tmp_path / "text.png",
        good,
        tmp_path / "missing.png",
        good.astype(np.float32),
        np.zeros((2, 2, 2, 2), np.uint8),
    ]
    found = model.predict(asked)
    assert [bool(row.error) for row in found] == [True, False, True, True, True]
    assert "not an image" in found[0].error and "no such file" in found[2].error
    assert "expected (H, W) or (H, W, 1, 3 or 4) of uint8" in found[3].error and "float32" in found[3].error
    assert np.isnan(found.probabilities[[0, 2, 3, 4]]).all() and np.isfinite(found.probabilities[1]).all()
    assert found.labels[0] == ""


def test_answers_to_views_are_averaged(model: Model, tmp_path: Path) -> None:
    pictures, _ = stripes(5)
    path = tmp_path / "one.png"
    Image.fromarray(pictures[0]).save(path)
    looks = [views_of(partial(Image.fromarray, picture), model.transforms, 3)[0] for picture in pictures]
    logits = np.stack([model.logits(look).mean(0) for look in looks])
    found = model.predict([path, *pictures[1:]], views=3)
    np.testing.assert_allclose(found.probabilities, model.probabilities(logits), rtol=1e-4)
    np.testing.assert_allclose(model.logits(np.concatenate(looks), views=3), logits, rtol=1e-4, atol=1e-5)
    assert not np.allclose(found.probabilities, model.predict(list(pictures)).probabilities, rtol=1e-3)
    assert all(transform.flip for transform in model.transforms)
    model.mirror = False
    assert not any(transform.flip for transform in model.transforms)


def test_nothing_asked_is_nothing_answered(model: Model) -> None:
    found = model.predict([])
    assert len(found) == 0 and found.probabilities.shape == (0, 3)


def test_a_stream_takes_pictures_as_it_needs_them(model: Model) -> None:
    pictures, _ = stripes(200)
    taken = []

    def source():  # type: ignore[no-untyped-def]
        for place, picture in enumerate(pictures):
            taken.append(place)
            yield picture

    stream = model.stream(source())
    rows, probabilities = next(stream)
    assert len(rows) == len(probabilities) > 0
    assert len(taken) < 200
    rest = [row for rows, _ in stream for row in rows]
    assert len(rows) + len(rest) == 200


def test_grey_alpha_and_odd_shapes_are_answered(model: Model) -> None:
    draw = np.random.default_rng(1)
    odd = [
        draw.integers(0, 256, shape, dtype=np.uint8)
        for shape in ((9, 40), (70, 5, 3), (33, 31, 4), (1, 1), (16, 16, 1))
    ]
    found = model.predict([*odd, Image.fromarray(odd[0]).convert("P"), Image.fromarray(odd[1]).convert("CMYK")])
    assert [row.error for row in found] == [""] * 7


@pytest.mark.parametrize(
    "one", ["a.jpg", Path("a.jpg"), Image.new("RGB", (8, 8)), np.zeros((8, 9, 3), np.uint8), np.zeros((8, 9), np.uint8)]
)
def test_one_picture_in_place_of_several_is_refused(model: Model, one: Any) -> None:
    with pytest.raises(TypeError, match=r"Got one picture, expected several: predict\(\[picture\]\)"):
        model.predict(one)


def test_an_array_of_paths_is_several(model: Model, tmp_path: Path) -> None:
    Image.fromarray(stripes(1)[0][0]).save(tmp_path / "a.png")
    paths = np.array([str(tmp_path / "a.png")] * 3)
    assert model.predict(paths).labels == model.predict(list(paths)).labels != [""] * 3


def test_no_item_whatever_it_is_ends_a_prediction(model: Model) -> None:
    closed = Image.new("RGB", (8, 8))
    closed.close()
    good = stripes(1)[0][0]
    shapes = [(0, 0, 3), (0, 5), (8, 8, 0), (8, 8, 5)]
    odd: list[Any] = [None, b"bytes", 7, closed, *(np.zeros(shape, np.uint8) for shape in shapes)]
    found = model.predict([good, *odd, good])
    assert [bool(row.error) for row in found] == [False, *[True] * len(odd), False]
    assert "a NoneType; expected a path, a Pillow picture or an array" in found[1].error
    assert "an array of shape (8, 8, 5)" in found[8].error
    assert found[0].probability == found[-1].probability


@pytest.mark.parametrize(
    "one",
    [b"a.jpg", bytearray(b"a.jpg"), memoryview(b"a.jpg"), {"a.jpg": 1}, torch.zeros(8, 8, 3), torch.zeros(3, 8, 8)],
)
def test_what_is_no_several_pictures_is_refused(model: Model, one: Any) -> None:
    with pytest.raises(
        TypeError, match=r"expected several( pictures)?: predict\(\[picture\]\)\. (Arrays|Tensors) of many are"
    ):
        model.predict(one)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ([np.zeros((8, 8, 3), np.float32)] * 2, r"an array of shape \(8, 8, 3\) and dtype float32; expected \(H, W\)"),
        (np.zeros((2, 3, 8, 8), np.uint8), r"an array of shape \(3, 8, 8\) and dtype uint8; expected"),
        ([torch.zeros(3, 8, 8)], r"a tensor of shape \(3, 8, 8\) and dtype float32; expected"),
        (torch.zeros(2, 8, 8, 3, dtype=torch.bfloat16), r"a tensor of shape \(8, 8, 3\) and dtype bfloat16; expected"),
        ([b"a.jpg", b"b.jpg"], "a bytes; expected a path, a Pillow picture or an array"),
        ([["a.jpg"]], "a list; expected a path"),
    ],
)
def test_where_nothing_can_be_a_picture_the_call_is_wrong(model: Model, wrong: Any, said: str) -> None:
    with pytest.raises(TypeError, match=f"Nothing given can be a picture. The first is {said}"):
        model.predict(wrong)


def test_tensors_of_bytes_are_taken_as_arrays(model: Model) -> None:
    pictures, _ = stripes(3)
    expected = model.predict(list(pictures)).probabilities
    for tensors in (torch.from_numpy(pictures), list(torch.from_numpy(pictures))):
        assert np.array_equal(model.predict(tensors).probabilities, expected)
    assert (
        model.predict([pictures[0], torch.zeros(0, 8, dtype=torch.uint8)])[1].error
        == "an array of shape (0, 8): nothing to see"
    )


def encoded(pixels: NDArray[np.uint8], kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_truncated_picture_in_memory_is_one_that_cannot_be_read(model: Model, kind: str) -> None:
    good = stripes(1, side=200)[0][0]
    content = encoded(good, kind)
    begun = Image.open(io.BytesIO(content[: len(content) // 2]))
    found = model.predict([good, begun, Image.new("RGB", (0, 5)), good])
    assert [bool(row.error) for row in found] == [False, True, True, False]
    assert "truncated" in found[1].error and "0 x 5 pixels" in found[2].error


def test_paths_may_be_bytes(model: Model, tmp_path: Path) -> None:
    Image.fromarray(stripes(1)[0][0]).save(tmp_path / "a.png")
    entries = [*os.scandir(bytes(tmp_path)), *os.scandir(tmp_path)]
    found = model.predict(entries)
    assert [(row.path, row.error) for row in found] == [(str(tmp_path / "a.png"), "")] * 2
    assert found[0].probability == found[1].probability


@pytest.mark.parametrize("kind", ["GIF", "TIFF"])
def test_the_frame_that_was_sought_is_answered(model: Model, tmp_path: Path, kind: str) -> None:
    first, second = (Image.fromarray(picture).quantize(64) for picture in stripes(2)[0])
    first.save(tmp_path / "frames", kind, save_all=True, append_images=[second])
    expected = model.predict([first.convert("RGB"), second.convert("RGB")]).probabilities
    for number in (0, 1, 0):
        with Image.open(tmp_path / "frames") as opened:
            opened.seek(1 - number)
            opened.seek(number)
            found = model.predict([opened, opened]).probabilities
            assert opened.tell() == number
        np.testing.assert_allclose(found, expected[[number, number]], rtol=1e-4)


def test_a_picture_whose_file_was_replaced_is_answered_as_it_was_opened(model: Model, tmp_path: Path) -> None:
    before, after = stripes(2)[0]
    Image.fromarray(before).save(tmp_path / "live.png")
    Image.fromarray(after).save(tmp_path / "new.png")
    with Image.open(tmp_path / "live.png") as opened:
        (tmp_path / "new.png").replace(tmp_path / "live.png")
        found = model.predict([opened]).probabilities
        assert np.array_equal(np.asarray(opened), before)
    assert np.array_equal(found, model.predict([before]).probabilities)


def test_one_jpeg_has_one_answer_from_a_file_and_from_memory(model: Model, tmp_path: Path) -> None:
    content = encoded(np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8), "JPEG")
    (tmp_path / "a.jpg").write_bytes(content)
    opened = Image.open(io.BytesIO(content))
    place = opened.fp.tell()  # type: ignore[union-attr]
    found = model.predict([tmp_path / "a.jpg", *[opened] * 40]).probabilities
    np.testing.assert_allclose(found, found[[0] * 41], rtol=1e-5)
    assert opened.tile and opened.fp.tell() == place and opened.size == (640, 480)  # type: ignore[union-attr]


def test_a_model_that_was_trained_further_answers_the_same_twice() -> None:
    class Noisy(TinyNet):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.drop(super().forward(x))

    backbone = load_module(Noisy(), SPEC)
    width = backbone.widths[-1]
    weight = np.random.default_rng(0).standard_normal((width, 2)).astype(np.float32)
    taps = (len(backbone.stages) - 1,)
    model = Model(backbone, Head("ridge", taps, 1e-4, weight, np.zeros(2, np.float32)), ("a", "b"))
    pictures = list(stripes(6)[0])
    before = model.predict(pictures).probabilities
    backbone.train_from(0)
    assert np.array_equal(model.predict(pictures).probabilities, before)


def test_models_are_copied_and_pickled(model: Model) -> None:
    pictures = list(stripes(6)[0])
    expected = model.predict(pictures).probabilities
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert np.array_equal(other.predict(pictures).probabilities, expected)
        other.backbone.stages[0].requires_grad_(True)
        assert not any(p.requires_grad for p in model.backbone.parameters())
