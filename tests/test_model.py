"""A model answers files, pictures and arrays alike, one by one or many, and says what it could not read."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from headstart.backbones.backbone import Backbone
from headstart.data.images import views_of
from headstart.heads import Head
from headstart.model import Model, Predictions
from tests.toys import stripes, tiny_backbone


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
    assert "expected (H, W) or (H, W, C) of uint8" in found[3].error and "float32" in found[3].error
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
