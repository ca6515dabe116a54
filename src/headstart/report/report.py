"""One self-contained HTML file: no script, no request, nothing that a name in the data could switch on."""

from __future__ import annotations

import base64
import io
import re
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from headstart import verdict
from headstart.errors import OutputError
from headstart.report import sections, text
from headstart.report.record import CurvePoint, HeadRow, Mistake, Pair, ReportData, RungRow, StageRow

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "CurvePoint",
    "HeadRow",
    "Mistake",
    "Pair",
    "ReportData",
    "RungRow",
    "StageRow",
    "open_in_browser",
    "render",
    "thumbnail",
]

THUMBNAIL_SIDE = 112


def render(data: ReportData) -> str:
    """The report as one HTML document, the same for the same data.

    Names of classes and files are escaped; a Content-Security-Policy forbids scripts and requests besides.
    """
    return _environment().get_template("template.html").render(data=data)


def open_in_browser(path: Path) -> bool:
    """Show a report in the person's browser; False where none could be started.

    Raises:
        OutputError: where there is no report at `path`.
    """
    if not path.is_file():
        raise OutputError(f"No report at '{path}'. `headstart fit DATA --out RUN` writes RUN/report.html.")
    return webbrowser.open(path.resolve().as_uri())


def thumbnail(image: Image, side: int = THUMBNAIL_SIDE) -> bytes:
    """JPEG bytes of a decoded RGB picture, its longest side at most `side`: about 3 KB at 112 pixels."""
    small = image.convert("RGB")
    small.thumbnail((side, side))
    held = io.BytesIO()
    small.save(held, "JPEG", quality=78)
    return held.getvalue()


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("headstart.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalize,
    )
    environment.filters.update(
        percent=_percent,
        tight=_tight,
        points=verdict.points,
        duration=text.duration,
        quantity=text.quantity,
        memory=text.memory,
        short=text.shortened,
        picture=_picture,
    )
    environment.globals.update(sections=sections, text=text)
    return environment


def _finalize(value: object) -> object:
    """Last word on everything the template writes, before it is escaped: names are made showable."""
    return text.shown(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _percent(share: float) -> str:
    return _tight(verdict.percent(share))


def _tight(sentence: str) -> str:
    """No line break between a number and its percent sign."""
    return re.sub(r"(?<=\d) %", "\u00a0%", sentence)


def _picture(jpeg: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")
