"""Numbers and names as a person reads them in the report."""

from __future__ import annotations

import re
from collections.abc import Sequence

# Lone surrogates (bytes of file names that are not UTF-8), control characters, and marks that turn the
# direction of writing: they break the file's encoding or make a name look like another one.
_UNSHOWABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")

# What the models of a test are called, in the order in which they are listed.
MODELS = {
    "final": "final model",
    "head": "best frozen head",
    "last_stage_head": "head on the last stage",
    "scratch_cnn": "small network from scratch",
    "pixels": "linear model on pixels",
    "majority": "commonest class",
}


def shown(text: str) -> str:
    """A name with what cannot be shown spelt out: byte 0xE9 of a file name becomes `\\xe9`."""

    def spelt(match: re.Match[str]) -> str:
        code = ord(match.group())
        if 0xDC80 <= code <= 0xDCFF:  # Python's surrogateescape (PEP 383)
            code -= 0xDC00
        return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"

    return _UNSHOWABLE.sub(spelt, text)


def shortened(text: str, length: int) -> str:
    """At most `length` characters, the middle left out: class names often differ only at their ends."""
    if len(text) <= length:
        return text
    head = (length - 1) // 2
    return f"{text[:head]}…{text[len(text) - (length - 1 - head) :]}"


def duration(seconds: float) -> str:
    """0.42 -> "0.4 s", 75 -> "1 min 15 s", 8000 -> "2 h 13 min", without a place where a line may break."""
    if seconds < 59.95:
        return f"{seconds:.1f}\u00a0s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}\u00a0min\u00a0{whole % 60}\u00a0s"
    return f"{whole // 3600}\u00a0h\u00a0{whole % 3600 // 60}\u00a0min"


def quantity(number: float) -> str:
    """1234567 -> "1.2 M": parameters and operations."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(number) >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:g}"


def memory(size: int) -> str:
    """Bytes in decimal units: 1500000000 -> "1.5 GB"."""
    return f"{quantity(size)}B" if size >= 1000 else f"{size} B"


def counted(number: int, one: str, many: str) -> str:
    """(1, "image", "images") -> "1 image"."""
    return f"{number:,} {one if number == 1 else many}"


def spans(numbers: Sequence[int]) -> str:
    """[1, 2, 3, 7] -> "1–3, 7"."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}–{part[-1]}" for part in parts)
