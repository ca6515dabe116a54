from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from timm.data import create_transform

from headstart.data.images import INTERPOLATIONS, Transform, decode, load_view, load_views, views_of
from headstart.data.sources import ArrayImages, FileImages, open_bytes
from headstart.errors import UnreadableImage
from tests.data.pictures import encoded, pixels, scene, write


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(orientation: int) -> None:
    upright = scene(1)
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the transposition that a camera so held has done
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(back[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    for kind in ("PNG", "JPEG", "WEBP", "TIFF"):
        options = {"exif": exif} if kind != "TIFF" else {"tiffinfo": {0x0112: orientation}}
        if kind == "WEBP":
            options["lossless"] = True
        opened = open_bytes(encoded(stored, kind, **options))
        result = decode(opened)
        assert result.size == upright.size
        tolerance = 12 if kind == "JPEG" else 0
        assert np.abs(pixels(result) - pixels(upright)).mean() <= tolerance


def test_exif_orientation_matches_pillows_own_reading() -> None:
    from PIL import ImageOps

    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        content = encoded(scene(2), "PNG", exif=exif)
        expected = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
        assert np.array_equal(pixels(decode(open_bytes(content))), pixels(expected))


def test_garbage_exif_leaves_the_pixels_as_stored() -> None:
    content = encoded(scene(3), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12garbage")
    assert decode(open_bytes(content)).size == (96, 80)


def _half_transparent_red(mode: str) -> Image.Image:
    image = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    image.paste((255, 0, 0, 255), (0, 0, 4, 8))
    return image.convert(mode)


def test_alpha_is_laid_over_white() -> None:
    for content in (
        encoded(_half_transparent_red("RGBA"), "PNG"),
        encoded(_half_transparent_red("RGBA").quantize(), "PNG"),
        encoded(_half_transparent_red("RGBA"), "WEBP", lossless=True),
        encoded(_half_transparent_red("RGBA"), "GIF"),
    ):
        result = pixels(decode(open_bytes(content)))
        assert result[4, 1].tolist() == [255, 0, 0]
        assert result[4, 6].tolist() == [255, 255, 255]
    grey = encoded(_half_transparent_red("LA"), "PNG")
    assert pixels(decode(open_bytes(grey)))[4, 6].tolist() == [255, 255, 255]


def test_a_transparent_colour_of_a_palette_grey_or_rgb_png_becomes_white() -> None:
    for mode in ("P", "L", "RGB", "1"):
        image = Image.new(mode, (4, 4), 0)
        transparency: object = (0, 0, 0) if mode == "RGB" else 0
        content = encoded(image, "PNG", transparency=transparency)
        assert pixels(decode(open_bytes(content)))[0, 0].tolist() == [255, 255, 255], mode


def test_palettes_with_transparency_in_bytes_do_not_warn() -> None:
    image = scene(4).quantize(16)
    content = encoded(image, "PNG", transparency=bytes([128] * 16))
    assert decode(open_bytes(content)).mode == "RGB"


def test_sixteen_bits_keep_their_range() -> None:
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    for kind in ("PNG", "TIFF"):
        result = pixels(decode(open_bytes(encoded(Image.fromarray(ramp), kind))))
        assert np.abs(result[..., 0] - ramp / 257.0).max() <= 1
    half = pixels(decode(Image.fromarray((ramp // 2).astype(np.uint16))))
    assert 126 <= half.max() <= 128


def test_float_and_deep_integer_pictures_fill_eight_bits() -> None:
    unit = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    assert np.abs(pixels(decode(Image.fromarray(unit)))[..., 0].ravel() - np.arange(256)).max() <= 1
    signed = (unit * 2000 - 1000).astype(np.int32)
    assert pixels(decode(Image.fromarray(signed)))[..., 0].min() == 0
    assert pixels(decode(Image.fromarray(signed)))[..., 0].max() == 255
    with_nan = unit.copy()
    with_nan[0, 0] = np.nan
    assert pixels(decode(Image.fromarray(with_nan)))[0, 0, 0] == 0


def test_every_mode_becomes_rgb() -> None:
    for mode, kind in (
        ("1", "PNG"),
        ("L", "JPEG"),
        ("P", "GIF"),
        ("CMYK", "JPEG"),
        ("CMYK", "TIFF"),
        ("LAB", "TIFF"),
    ):
        image = scene(5).convert("RGB")
        if mode == "LAB":
            from PIL import ImageCms

            profile = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
            image = ImageCms.profileToProfile(image, *profile, outputMode="LAB")
        result = decode(open_bytes(encoded(image.convert(mode), kind)))
        assert (result.mode, result.size) == ("RGB", (96, 80)), mode


def test_animations_give_their_first_frame() -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue", "green")]
    for kind, options in (("GIF", {}), ("WEBP", {"lossless": True}), ("TIFF", {}), ("PNG", {})):
        content = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert pixels(decode(open_bytes(content)))[8, 8].tolist() == [255, 0, 0], kind


def test_large_jpegs_are_decoded_at_reduced_scale_but_never_below_what_is_needed() -> None:
    content = encoded(scene(6, 1600, 1200), "JPEG", quality=95)
    for shortest in (1200, 700, 599, 300, 151, 150, 64):
        result = decode(open_bytes(content), shortest)
        assert min(result.size) >= shortest
        assert min(result.size) < 2 * shortest or min(result.size) == 150  # 1/8 is the smallest scale
    reduced = decode(open_bytes(content), 300).resize((80, 60), Image.Resampling.BOX)
    full = decode(open_bytes(content)).resize((80, 60), Image.Resampling.BOX)
    assert np.abs(pixels(reduced) - pixels(full)).mean() < 1.0


@pytest.mark.parametrize(("kind", "decodes"), [("JPEG", 2), ("PNG", 1)])
def test_a_picture_is_decoded_once_for_all_networks_that_need_it_at_one_scale(
    kind: str, decodes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = encoded(scene(6, 640, 800), kind)
    transforms = [Transform((size, size)) for size in (224, 240, 260, 300)]  # 300 px and its margin need a JPEG in full
    expected = [each.clean(decode(open_bytes(content), each.needed_side)) for each in transforms]
    asked: list[int | None] = []

    def counted(image: Image.Image, shortest: int | None = None) -> Image.Image:
        asked.append(shortest)
        return decode(image, shortest)

    monkeypatch.setattr("headstart.data.images.decode", counted)
    found = views_of(lambda: open_bytes(content), transforms, 2)
    assert len(asked) == decodes
    assert all(len(views) == 3 and np.array_equal(views[0], b) for views, b in zip(found, expected, strict=True))
    (alone,) = views_of(lambda: open_bytes(content), transforms[:1])
    assert np.array_equal(alone[0], expected[0]) and len(alone) == 1


def test_views_are_drawn_from_what_is_seen() -> None:
    flipping, plain = Transform((64, 64)), Transform((64, 64), flip=False)
    as_png, as_bmp = (encoded(scene(6, 200, 160), kind) for kind in ("PNG", "BMP"))
    (first,) = views_of(lambda: open_bytes(as_png), [flipping], 6)
    assert np.array_equal(first, views_of(lambda: open_bytes(as_bmp), [flipping], 6)[0])
    assert len(np.unique(first.reshape(7, -1), axis=0)) == 7
    (never,) = views_of(lambda: open_bytes(as_png), [plain], 6)
    same = [np.array_equal(a, b) for a, b in zip(first, never, strict=True)]
    mirrored = [np.array_equal(a, b[:, ::-1]) for a, b in zip(first, never, strict=True)]
    assert same[0] and any(mirrored) and all(a != b for a, b in zip(same, mirrored, strict=True))
    with pytest.raises(ValueError, match="-1 augmented views; expected 0"):
        views_of(lambda: open_bytes(as_png), [plain], -1)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_cut_off_file_is_unreadable(kind: str) -> None:
    content = encoded(scene(7, 300, 300), kind)
    with pytest.raises(UnreadableImage):
        decode(open_bytes(content[: len(content) * 2 // 3]), 64)


def test_reasons_are_told_in_words() -> None:
    jpeg = encoded(scene(8), "JPEG")
    for content, words in (
        (b"", "the file is empty"),
        (
            b"just some text, quite long enough to be sniffed at",
            "not an image in a format that Pillow can open",
        ),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "a HEIC photo"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image in a format"),
    ):
        with pytest.raises(UnreadableImage, match=words):
            open_bytes(content)
    with pytest.raises(UnreadableImage, match="truncated"):
        decode(open_bytes(jpeg[: len(jpeg) // 2]))


def test_a_decompression_bomb_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UnreadableImage, match="2,000 pixels: refused as a decompression bomb"):
        open_bytes(encoded(scene(9), "PNG"))
    small = encoded(scene(9, 40, 30), "PNG")  # between the limit and twice it Pillow only warns
    assert decode(open_bytes(small)).size == (40, 30)


def test_damaged_streams_never_raise_anything_else() -> None:
    random = np.random.default_rng(0)
    for kind in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "TGA", "ICO"):
        whole = np.frombuffer(encoded(scene(10, 64, 64), kind), np.uint8)
        for _ in range(40):
            content = whole.copy()
            content[random.integers(0, len(content), 12)] = random.integers(0, 256, 12)
            try:
                assert decode(open_bytes(content.tobytes())).mode == "RGB"
            except UnreadableImage as error:
                assert str(error)


def test_warnings_of_pillow_do_not_leak_from_threads() -> None:
    info = PngImagePlugin.PngInfo()
    content = encoded(scene(11).quantize(16), "PNG", transparency=bytes([9] * 16), pnginfo=info)
    with ThreadPoolExecutor(8) as pool:
        modes = list(pool.map(lambda _: decode(open_bytes(content)).mode, range(200)))
    assert set(modes) == {"RGB"}
    import warnings

    with pytest.warns(UserWarning, match="heard"):  # and the filters are as before
        warnings.warn_explicit("heard", UserWarning, "x.py", 1, module="PIL.Image")


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(224, 224), (96, 160)])
@pytest.mark.parametrize(("width", "height"), [(640, 480), (333, 501), (28, 28), (224, 224), (97, 1001)])
def test_the_clean_view_equals_timm(interpolation: str, size: tuple[int, int], width: int, height: int) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))
    reference = create_transform((3, *size), interpolation=interpolation, crop_pct=0.875, normalize=False)
    expected = reference(image).permute(1, 2, 0).numpy().astype(np.int16)
    found = Transform(size, interpolation, 0.875).clean(image).astype(np.int16)
    assert found.shape == (*size, 3)
    if max(width, height) < 8 * min(width, height):
        assert np.array_equal(found, expected)
    else:  # grain at its fiercest; what is rounded and clipped between Pillow's two passes may differ
        assert np.abs(found - expected).mean() < 0.5


def test_transforms_come_from_an_input_spec_and_refuse_nonsense() -> None:
    spec = SimpleNamespace(size=(240, 240), interpolation="bicubic", crop=0.882, mean=(0.5, 0.5, 0.5))
    transform = Transform.of(spec, flip=False)
    assert (transform.size, transform.crop, transform.flip, transform.needed_side) == (
        (240, 240),
        0.882,
        False,
        272,
    )
    with pytest.raises(ValueError, match="interpolation 'cubist' is not one of nearest, bilinear"):
        Transform((224, 224), "cubist")
    with pytest.raises(ValueError, match="must be positive"):
        Transform((224, 0))


@pytest.mark.parametrize("interpolation", sorted(INTERPOLATIONS))
@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 3000), (20000, 2), (28, 28)])
def test_extreme_shapes_give_views_of_the_right_shape(interpolation: str, width: int, height: int) -> None:
    transform = Transform((48, 48), interpolation)
    image = scene(13, width, height)
    assert transform.clean(image).shape == (48, 48, 3)
    for number in range(1, 6):
        assert transform.view(image, "content", number, 0).shape == (48, 48, 3)


def test_views_depend_on_content_number_and_seed_alone(tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.mktemp("views")
    paths = [write(root / name, seed) for name, seed in (("a.png", 1), ("b.png", 2), ("copy of a.png", 1))]
    images = FileImages(tuple(paths), tuple(path.name for path in paths))
    transform = Transform((32, 32))
    forwards = [load_view(images, i, transform, view, 7) for i in range(3) for view in range(4)]
    backwards = [load_view(images, i, transform, view, 7) for i in reversed(range(3)) for view in reversed(range(4))]
    assert all(np.array_equal(a, b) for a, b in zip(forwards, reversed(backwards), strict=True))
    other = Transform((24, 24))
    for transforms in ([transform], [transform, other], [other, transform]):
        found = load_views(images, 0, transforms, range(4), 7)
        assert np.array_equal(found[transforms.index(transform)], np.stack(forwards[:4]))
    assert np.array_equal(forwards[2], forwards[10])  # the copy, under another name
    assert len({view.tobytes() for view in forwards[:8]}) == 8
    assert not np.array_equal(forwards[1], load_view(images, 0, transform, 1, 8))
    assert np.array_equal(forwards[0], transform.clean(decode(images.open(0))))


def test_views_are_crops_in_range_and_flips_can_be_switched_off() -> None:
    across = np.linspace(0, 255, 300).astype(np.uint8)
    image = Image.fromarray(np.repeat(np.repeat(across[None, :, None], 200, 0), 3, 2))
    rising = [
        float(view[0, -1, 0]) - float(view[0, 0, 0])
        for view in (Transform((32, 32)).view(image, "x", number, 0) for number in range(200))
    ]
    assert 70 < sum(change < 0 for change in rising) < 130
    unflipped = [Transform((32, 32), flip=False).view(image, "x", number, 0) for number in range(200)]
    assert all(view[0, -1, 0] > view[0, 0, 0] for view in unflipped)
    # Half the area at an aspect of 3/4 spans sqrt(0.5 * 0.75) of the mean side: 150 of 300 columns.
    assert min(int(view[0, -1, 0]) - int(view[0, 0, 0]) for view in unflipped) >= 255 * 145 / 300
    assert max(int(view[0, -1, 0]) - int(view[0, 0, 0]) for view in unflipped) > 255 * 200 / 300


def test_cache_keys_tell_apart_what_gives_other_pixels() -> None:
    variants = [
        Transform((224, 224)), Transform((240, 240)), Transform((224, 240)),
        Transform((224, 224), "bilinear"), Transform((224, 224), crop=0.9),
        Transform((224, 224), flip=False), Transform((224, 224), scale=(0.3, 1.0)),
    ]  # fmt: skip
    assert len({variant.fingerprint for variant in variants}) == len(variants)
    keys = {variant.key(view, seed) for variant in variants for view in (1, 2) for seed in (0, 1)}
    assert len(keys) == 4 * len(variants)
    assert variants[0].key(0, 1) == variants[5].key(0, 2)  # the clean view knows neither seed nor flip


def test_errors_of_views_name_the_picture() -> None:
    images = ArrayImages(np.zeros((1, 4, 4), np.uint8), ("train[0]",), (0,))
    assert load_view(images, 0, Transform((8, 8))).max() == 0


def test_unreadable_views_name_the_file(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("bad") / "cut.jpg"
    content = encoded(scene(1, 200, 200), "JPEG")
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UnreadableImage, match=r"^moths/cut\.jpg: truncated: image file is truncated"):
        load_view(FileImages((path,), ("moths/cut.jpg",)), 0, Transform((8, 8)))
