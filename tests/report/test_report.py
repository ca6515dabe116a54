"""The report is well-formed, complete, loads nothing, escapes everything, repeats, and stays small."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from headstart.errors import OutputError
from headstart.report.report import open_in_browser, render, thumbnail

from .sample import SIGNS, renamed, sample

VOID = {"meta", "link", "img", "br"}
# SVG elements that are closed in place.
SVG_VOID = {"line", "circle", "path", "rect"}


class Document(HTMLParser):
    """Checks that tags nest, and collects elements, attributes and text."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), f"an attribute twice in {tag}: {attrs}"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in SVG_VOID, f"<{tag}/> is no void element"
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def html() -> str:
    return render(sample())


def test_document_is_well_formed_and_has_every_section(html: str) -> None:
    document = Document(html)
    ids = [attrs["id"] for _, attrs in document.elements if "id" in attrs]
    assert ids == [
        "verdict",
        "baselines",
        "frozen",
        "depth",
        "curves",
        "data",
        "confusion",
        "classes",
        "mistakes",
        "doubts",
        "pairs",
        "growth",
        "calibration",
        "run",
    ]
    links = [attrs["href"] for tag, attrs in document.elements if tag == "a"]
    assert links == [f"#{name}" for name in ids[1:]]


def test_document_says_what_the_data_say(html: str) -> None:
    data, text = sample(), Document(html).text.replace("\u00a0", " ")
    for said in (
        data.verdict.sentence,
        *data.verdict.reasons,
        *data.plan_reasons,
        data.command,
        *data.notes,
        "5 min 11 s",
        "1.32 GB",
        "torch 2.15.0",
        "+1.9 ± 0.6 points",
        "not tried",
        "61 % frozen",
        "Rung 2",
        *SIGNS,
        *(finding.message for finding in data.audit.findings),
        "Next: They are skipped.",
        *(finding.message for finding in data.findings),
        "Next: Look at the pairs, and name their scene",
        "roses/s11.jpg ~ roses/t11.jpg",
        "and 19 more, see metrics.json",
        "IMG_2041.jpg",
        "17 of 640 training pictures are worth a second look: the best frozen head",
        "answers against their label, 6 of them with confidence: at least 75 % sure, and as sure as it is of that class",
        "IMG_4101.jpg",
        "about 95.6 % (93.7 to 97.1) out of fold, instead of 94.3 %",
        f"{100 * data.test.models['pixels'].accuracy.value:.1f} %",
        "94.3 ± 0.8 %",
    ):
        assert said in text, said


def test_doubts_of_which_only_the_confident_are_listed_are_not_said_to_be_all() -> None:
    text = Document(render(replace(sample(), doubtful=(6, 6, 640)))).text.replace("\u00a0", " ")
    assert "answers against their label with confidence: at least 75 % sure" in text
    assert "What it answers against its label with less confidence is left out." in text
    assert "is left out" not in Document(render(sample())).text


def test_names_that_are_shortened_already_are_not_cut_again(html: str) -> None:
    assert "text-overflow" not in html


def test_findings_stand_below_the_verdict_with_warnings_before_notes(html: str) -> None:
    data, document = sample(), Document(html)
    text = document.text.replace("\u00a0", " ")
    warned, noted = (text.index(finding.message) for finding in data.findings)
    assert text.index(data.verdict.sentence) < warned < noted < text.index("Did transfer earn its keep?")
    shown = [attrs["class"] for tag, attrs in document.elements if tag == "div" and "caution" in str(attrs)]
    assert shown == ["caution", "caution mild"]


def test_nothing_is_loaded_and_nothing_runs(html: str) -> None:
    for tag, attrs in Document(html).elements:
        assert tag not in {"script", "iframe", "object", "embed", "base", "form"}
        for name, value in attrs.items():
            assert not name.startswith("on")
            if name in {"src", "href", "srcset", "action", "data"}:
                assert value is not None and value.startswith(("data:image/jpeg;base64,", "data:,", "#")), value
    assert "default-src 'none'" in html
    assert not re.search(r"@import|url\(|https?:", html)


EVIL = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(2)>',
    "{{ 7*7 }}{% raw %}",
    "' onmouseover='x",
    "</style></title><b>",
    "a\u202egpj.exe",
    "nul\x00 tab\t",
    "&lt;already&gt;",
    "naïve 日本 🌼",
)


def test_names_are_only_ever_text() -> None:
    names = [*EVIL[1:], "\udce9t\udce9", EVIL[0]]
    data = renamed(sample(names, 400), 'caf\udce9/<svg onload=alert(3)>".jpg')
    data = replace(data, title=EVIL[1], command=EVIL[0], notes=list(EVIL), backbone=EVIL[0], plan_reasons=[EVIL[0]])
    html = render(data)
    html.encode("utf-8")  # no lone surrogate is left
    document = Document(html)
    allowed = {"src", "href"}
    for tag, attrs in document.elements:
        assert tag not in {"script", "b "} and not any(name.startswith("on") for name in attrs)
        assert all(value != "x" for name, value in attrs.items() if name in allowed)
    assert {tag for tag, _ in document.elements} == {tag for tag, _ in Document(render(sample())).elements}
    for shown in (EVIL[0], EVIL[1], EVIL[2], "&lt;already&gt;", EVIL[-1], r"\xe9t\xe9", r"a\u202egpj.exe"):
        assert shown in document.text, shown
    assert "caf\\xe9/<svg onload=alert(3)>" in document.text
    assert not set("\x00\u202e") & set(html)


def test_the_same_data_give_the_same_bytes(html: str) -> None:
    assert render(sample()) == html


def test_a_thousand_classes_stay_small_and_are_said_to_be_cut() -> None:
    names = [f"class {k:04d}, with a name that goes on for longer than any table should" for k in range(1000)]
    data = sample(names, 3000)
    html = render(data)
    assert len(html) < 1_500_000
    text = Document(html).text
    for said in (
        "The 20 largest and the 20 smallest of 1,000 classes.",
        "12 of 1,000 classes.",
        "of 1,000 classes have no right answer; 60 of them are shown.",
        "1,000 classes are too many to name in the picture",
    ):
        assert said in text, said
    assert html.count("<img") == 12 * 5 + 14 + 3 + 2 * 3


def test_a_head_only_run_leaves_the_empty_sections_out() -> None:
    data = sample()
    stages = [replace(stage, frozen=True, accuracy=None, accuracy_se=None) for stage in data.stages]
    data = replace(
        data, stages=stages, rungs=(), plan_reasons=(), heads=(), mistakes=(), doubts=(), pairs=(), thumbnails=()
    )
    data = replace(data, growth=None)
    document = Document(render(data))
    ids = {attrs["id"] for _, attrs in document.elements if "id" in attrs}
    assert not ids & {"curves", "mistakes", "doubts", "pairs", "growth"}
    assert "All 9 stages of tf_efficientnet_lite0 stayed as they came" in document.text
    links = {attrs["href"] for tag, attrs in document.elements if tag == "a"}
    assert links == {f"#{name}" for name in ids - {"verdict"}}


def test_cross_validation_is_never_called_a_sealed_test() -> None:
    data = sample(images=70, repeats=3)
    text = Document(render(data)).text
    assert "Cross-validated, no test set cut" in text
    assert "sealed test" not in text
    # Each of 70 images is counted once in the table, though each was answered three times.
    assert sum(row.support for row in data.test.classes) == 210


def test_thumbnails_are_small_jpegs() -> None:
    jpeg = thumbnail(Image.new("RGB", (640, 320), "red"))
    with Image.open(io.BytesIO(jpeg)) as image:
        assert (image.format, image.size) == ("JPEG", (112, 56))
    assert len(jpeg) < 4000


def test_opening_a_report_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="`headstart fit DATA --out RUN` writes"):
        open_in_browser(tmp_path / "report.html")


def test_opening_hands_the_browser_a_file_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda address: bool(opened.append(address)) or True)
    (tmp_path / "a b.html").write_text("x", encoding="utf-8")
    assert open_in_browser(tmp_path / "a b.html")
    assert opened == [(tmp_path / "a b.html").as_uri()] and "a%20b.html" in opened[0]


def test_report_and_verdict_need_no_torch() -> None:
    code = "import sys, headstart.report.report, headstart.verdict; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
