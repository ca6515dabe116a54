from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from headstart.data.facts import RECORD_BYTES, Fact, measure, perceptual_hash
from headstart.data.sources import FileImages
from headstart.runtime import bar
from tests.data.pictures import encoded, scene, write


class Shelf(dict[str, bytes]):
    """A `Memory` that counts."""

    def get_many(self, digests: Sequence[str]) -> Mapping[str, bytes]:
        return {digest: self[digest] for digest in digests if digest in self}

    def put_many(self, records: Mapping[str, bytes]) -> None:
        self.update(records)


def files(*paths: Path) -> FileImages:
    return FileImages(paths, tuple(path.name for path in paths))


def bad_files(root: Path) -> dict[str, Path]:
    """Name of the trouble -> a file that has it."""
    whole = encoded(scene(1, 300, 300), "JPEG")
    contents = {
        "truncated": whole[: len(whole) // 2], "empty": b"", "text": b"this is no photograph at all",
        "html": b"<!DOCTYPE html><html>404</html>",
    }  # fmt: skip
    found = {name: root / f"{name}.jpg" for name in contents}
    for name, path in found.items():
        path.write_bytes(contents[name])
    found["link"] = root / "link.jpg"
    found["link"].symlink_to(root / "nowhere.jpg")
    found["folder"] = root / "folder.jpg"
    found["folder"].mkdir()
    found["pipe"] = root / "pipe.jpg"
    os.mkfifo(found["pipe"])
    return found


def test_bad_files_become_facts_with_reasons_and_nothing_hangs(tmp_path: Path) -> None:
    bad = bad_files(tmp_path)
    facts = measure(files(write(tmp_path / "good.png", 5), *bad.values()))
    assert facts.readable.tolist() == [0]
    reasons = dict(zip(bad, facts.reasons[1:], strict=True))
    assert reasons["truncated"].startswith("truncated: image file is truncated")
    assert reasons["empty"] == "the file is empty (0 bytes)"
    assert reasons["text"] == reasons["html"] == "not an image in a format that Pillow can open"
    assert reasons["link"] == "no such file (or a broken link)"
    assert reasons["folder"] == reasons["pipe"] == "not a regular file"


def test_a_file_without_permission_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, other = write(tmp_path / "a.png", 1), write(tmp_path / "b.png", 2)
    read_bytes = Path.read_bytes

    def refuse(self: Path) -> bytes:  # tests may run as a user whom no file refuses
        if self == path:
            raise PermissionError(13, "Permission denied", str(self))
        return read_bytes(self)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    facts = measure(files(path, other))
    assert facts.reasons == ("permission denied", "")
    assert facts.digests[0] == ""


def test_sizes_modes_and_formats_are_those_of_the_upright_full_picture(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    big = write(tmp_path / "turned.jpg", 1)
    scene(1, 1600, 1200).save(big, exif=exif)
    grey = tmp_path / "grey.png"
    scene(2, 30, 40).convert("L").save(grey)
    facts = measure(files(big, grey))
    assert facts.width.tolist() == [1200, 30]
    assert facts.height.tolist() == [1600, 40]
    assert (facts.modes, facts.formats) == (("RGB", "L"), ("JPEG", "PNG"))
    assert (facts.thumbnails.shape, facts.thumbnails.dtype) == ((2, 32, 32), np.uint8)
    assert (facts.colours.shape, facts.colours.dtype) == ((2, 8, 8, 3), np.uint8)
    assert facts.colours[0].std() > 10 and (facts.colours[1] == facts.colours[1, ..., :1]).all()


def test_the_span_is_that_of_16_bits_without_its_outliers(tmp_path: Path) -> None:
    values = np.full((300, 300), 1000, np.uint16)
    values[100:] = 1600
    values[7, 7] = 65535
    Image.fromarray(values).save(tmp_path / "deep.tif")
    Image.fromarray(values.astype(np.int32)).save(tmp_path / "wide.tif")
    Image.fromarray(values.astype(np.int32) - 5000).save(tmp_path / "signed.tif")
    Image.fromarray(values.astype(np.float32)).save(tmp_path / "float.tif")
    write(tmp_path / "usual.png", 1)
    facts = measure(
        files(*(tmp_path / f"{name}" for name in ("deep.tif", "wide.tif", "signed.tif", "float.tif", "usual.png")))
    )
    assert facts.spans[:2].tolist() == [[1000, 1600]] * 2
    assert np.isnan(facts.spans[2:]).all()


def test_memory_spares_every_decoding_even_of_unreadable_and_renamed_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = Shelf()
    bad = bad_files(tmp_path)
    first = measure(files(write(tmp_path / "a.png", 1), bad["truncated"]), shelf)
    assert {len(record) for record in shelf.values()} == {RECORD_BYTES}
    (tmp_path / "a.png").rename(tmp_path / "z.png")
    monkeypatch.setattr("headstart.data.facts.decode", lambda *_: pytest.fail("decoded again"))
    again = measure(files(tmp_path / "z.png", bad["truncated"]), shelf)
    assert (again.digests, again.reasons) == (first.digests, first.reasons)
    assert np.array_equal(again.hashes, first.hashes)
    assert np.array_equal(again.thumbnails, first.thumbnails)
    assert np.array_equal(again.colours, first.colours)
    assert np.array_equal(again.spans, first.spans, equal_nan=True)
    assert (again.width.tolist(), again.modes, again.formats) == (
        first.width.tolist(),
        first.modes,
        first.formats,
    )


def test_records_of_another_version_or_length_are_measured_again(tmp_path: Path) -> None:
    images = files(write(tmp_path / "a.png", 1))
    shelf = Shelf()
    expected = measure(images, shelf)
    ((digest, record),) = shelf.items()
    for damaged in (record[:-1], b"", bytes([record[0] ^ 1]) + record[1:]):
        shelf[digest] = damaged
        assert np.array_equal(measure(images, shelf).hashes, expected.hashes)
        assert shelf[digest] == record


def test_every_picture_that_is_decoded_is_told_at_once(tmp_path: Path) -> None:
    told: list[int] = []

    @contextmanager
    def progress(description: str, total: int, unit: str = "images") -> Iterator[object]:
        yield lambda count=1, **fields: told.append(count)

    shelf = Shelf()
    images = files(*(write(tmp_path / f"{seed}.png", seed) for seed in range(5)))
    measure(images.select([0, 1]), shelf, progress)  # type: ignore[arg-type]
    assert told == [0, 1, 1]
    measure(images, shelf, progress)  # type: ignore[arg-type]
    assert told[3:] == [2, 1, 1, 1]


def test_a_bar_tells_no_rate_before_it_can_know_it(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    with bar("Reading pictures", 4) as advance:
        advance()
        advance()
    shown = capfd.readouterr().err
    assert "2/4" in shown and "images/s" not in shown and "-:--:--" in shown


@pytest.mark.parametrize("why", ["", "ü" * 300, "short"])
def test_facts_survive_packing(why: str) -> None:
    fact = (
        Fact(why)
        if why
        else Fact("", 12_000, 9_000, "RGBA", "JPEG2000", bytes(range(256)) * 4, bytes(range(192)), (290.0, 350.5))
    )
    unpacked = Fact.unpack(fact.pack())
    assert unpacked is not None
    assert unpacked.reason == why[:100] if why.startswith("ü") else unpacked == fact


def test_hashes_follow_what_is_shown_and_not_how_it_is_stored() -> None:
    def hash_of(image: Image.Image) -> np.uint64:
        grey = np.asarray(image.convert("L").resize((32, 32), Image.Resampling.BILINEAR))
        return np.uint64(perceptual_hash(grey[None])[0])

    def apart(a: Image.Image, b: Image.Image) -> int:
        return int(hash_of(a) ^ hash_of(b)).bit_count()

    image = scene(1, 400, 300)
    assert apart(image, image.resize((200, 150))) <= 4
    assert apart(image, Image.fromarray((np.asarray(image) * 0.8).astype(np.uint8))) <= 4
    assert min(apart(image, scene(seed, 400, 300)) for seed in range(2, 30)) >= 12
