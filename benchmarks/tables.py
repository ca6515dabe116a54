"""Write docs/results.md and docs/choices.md with their plots, and the README's table, from benchmarks/results: no number is typed.

    python benchmarks/tables.py

What the pages say stands in results.md.jinja, choices.md.jinja and readme.md.jinja; tables come from the modules that these name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

import aims
import calibration
import cells
import fairness
import forecast
import main_job
import plots
import regret
import scaling
import speed
import standings
import tables_cost
import tables_diagnosis
import tables_heads
import tables_training

HERE = Path(__file__).parent
ROOT = HERE.parent
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
PAGES = ("results.md", "choices.md")
MODULES = (
    aims, calibration, cells, fairness, forecast, main_job, regret, scaling, speed, standings, tables_cost, tables_diagnosis,
    tables_heads, tables_training,
)  # fmt: skip


def loaded(folder: Path) -> dict[str, Any]:
    """What each results file holds, by its name."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}


def machine(environment: Mapping[str, Any]) -> str:
    """The environment that figures must be read with, in a line."""
    instructions = f" ({environment['instructions']})" if "instructions" in environment else ""
    return (
        f"{environment['processor']}{instructions}, {environment['cores']} cores, {environment['memory_bytes'] / 2**30:.0f} GiB, "
        f"torch {environment['torch']}, timm {environment['timm']}, Python {environment['python']}"
    )


def page(template: str, results: Mapping[str, Any]) -> str:
    """A template filled in; a table is a list of lines, and a section whose results are not there is left out."""
    environment = Environment(
        loader=FileSystemLoader(HERE),
        undefined=StrictUndefined,
        trim_blocks=True,
        finalize=lambda value: "\n".join(value) if isinstance(value, list) else value,
    )
    environment.filters |= {"digits": cells.digits, "percent": cells.percent}
    environment.globals |= {"machine": machine, **{module.__name__: module for module in MODULES}}
    return environment.get_template(template).render(results=results).rstrip() + "\n"


def plotted(results: Mapping[str, Any], folder: Path) -> None:
    """The plots that the results at hand allow."""
    if "speed" in results:
        cases = results["speed"]["cases"]
        shown = {name: speed.points(case) for name, case in cases.items()}
        until = "a usable model (Headstart's default: to the end of its proof)"
        plots.accuracy_against_time(shown, folder / "speed.svg", until)
    if "accuracy" in results and (together := standings.together(standings.met(results["accuracy"]["cases"]))):
        shown = {f"mean of {len(common)} cases": standings.points(common, names) for names, common in together[1:]}
        plots.accuracy_against_time(shown, folder / "accuracy.svg")
    if "scaling" in results:
        plots.pace_and_memory(results["scaling"]["cases"], folder / "scaling.svg")


def replaced(path: Path, text: str) -> None:
    """Put the text between the markers of a page."""
    before, rest = path.read_text(encoding="utf-8").split(BEGIN, 1)
    _, after = rest.split(END, 1)
    path.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}", encoding="utf-8")


def main() -> None:
    """Write what the results at hand allow."""
    results = loaded(HERE / "results")
    if "main_job" not in results:
        raise SystemExit("benchmarks/results/main_job.json is not there; run benchmarks/main_job.py first")
    plotted(results, ROOT / "docs")
    for name in PAGES:
        (ROOT / "docs" / name).write_text(page(f"{name}.jinja", results), encoding="utf-8")
    replaced(ROOT / "README.md", page("readme.md.jinja", results))


if __name__ == "__main__":
    main()
