"""What the terminal shows: tables for people, JSON where it is asked for."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from headstart.data.audit import plural
from headstart.report.text import MODELS

if TYPE_CHECKING:
    from headstart.backbones.catalog import Entry
    from headstart.data.audit import Audit
    from headstart.evaluate import TestReport
    from headstart.features.store import Store
    from headstart.intervals import Interval
    from headstart.run import Run

_COLOURS = {"error": "bold red", "warning": "yellow", "note": "dim"}
_CLASSES = 40
_ITEMS = 5


def show_audit(audit: Audit) -> None:
    """Classes by side, and findings with what to do about them."""
    console = Console(emoji=False)
    groups = "" if audit.groups is None else f", in {plural(audit.groups, 'group')}"
    console.print(
        f"[bold]{escape(audit.source)}[/]  {audit.layout}, {audit.usable:,} of {audit.images:,} images usable{groups}"
    )
    table = Table("class", *("images", "train", "val", "test"), box=None, header_style="dim")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, *counts in audit.class_rows()[:_CLASSES]:
        table.add_row(escape(name), *(f"{count:,}" for count in counts))
    console.print(table)
    if len(audit.classes) > _CLASSES:
        console.print(f"… and {len(audit.classes) - _CLASSES} more classes (--json shows all)")
    for found in audit.ordered():
        console.print(
            f"[{_COLOURS[found.severity]}]{found.severity}[/] {escape(found.message)} [dim]{escape(found.next_step)}[/]"
        )
        named = all(item in found.message for item in found.items)  # as a message may do with its only one
        if found.total > 1 or not named:
            for item in found.items[:_ITEMS]:
                console.print(f"    [dim]{escape(item)}[/]", soft_wrap=True)
            if found.total > _ITEMS:
                console.print(f"    [dim]… and {found.total - _ITEMS:,} more (--json lists them)[/]")


def show_run(run: Run) -> None:
    """The verdict, all models side by side, and where things are."""
    console = Console(emoji=False)
    console.print()
    colour = {"helped": "green", "hurt": "red"}.get(run.verdict.outcome, "yellow")
    flag = " [yellow]overkill[/]" if run.verdict.overkill else ""
    console.print(f"[bold {colour}]{run.verdict.outcome}[/]{flag}  {escape(run.verdict.sentence)}")
    for reason in run.verdict.reasons:
        console.print(f"  {escape(reason)}")
    for warning in run.verdict.warnings:
        console.print(f"  [yellow]{escape(warning)}[/]")
    for finding in run.metrics["findings"]:
        colour = _COLOURS[finding["severity"]]
        console.print(f"  [{colour}]{escape(finding['message'])}[/] [dim]{escape(finding['next_step'])}[/]")
    test = run.metrics["test"]
    table = Table("model", "accuracy %", "95 % interval", "log-loss", "ECE %", box=None, header_style="dim")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, scores in test["models"].items():
        accuracy = scores["accuracy"]
        table.add_row(
            MODELS.get(name, name),
            f"{100 * accuracy['value']:.1f}",
            f"{100 * accuracy['low']:.1f} to {100 * accuracy['high']:.1f}",
            f"{scores['log_loss']['value']:.3f}",
            f"{100 * scores['ece']['value']:.1f}",
            style="bold" if name == "final" else "",
        )
    console.print(table)
    console.print(f"{test['images']:,} images tested, {run.metrics['seconds']['total']:.0f} s")
    if run.metrics["growth"] is not None:
        console.print(escape(run.metrics["growth"]["sentence"]))
    if run.folder is not None:
        console.print(f"report   {escape(shlex.quote(str(run.report)))}", soft_wrap=True)
        doubts = run.metrics["doubts"]
        if doubts["pictures"]:
            place = escape(shlex.quote(str(run.folder / "doubts.csv")))
            console.print(
                f"doubts   {place}  ({doubts['pictures']:,} of {doubts['of']:,} labels are worth a second look, "
                f"{doubts['confident']:,} contradicted with confidence)",
                soft_wrap=True,
            )
        console.print(f"predict  headstart predict {escape(shlex.quote(str(run.folder)))} PICTURES…", soft_wrap=True)


def show_scores(report: TestReport) -> None:
    """The metrics of one model with intervals, and its weakest classes."""
    console = Console(emoji=False)
    table = Table("metric", "value", "95 % interval", box=None, header_style="dim")
    scores = report.models["final"]
    for name in ("accuracy", "balanced_accuracy", "macro_f1", "log_loss", "ece"):
        found: Interval = getattr(scores, name)
        table.add_row(name.replace("_", " "), f"{found.value:.4f}", f"{found.low:.4f} to {found.high:.4f}")
    console.print(f"{report.images:,} images")
    console.print(table)
    worst = sorted((row for row in report.classes if row.recall is not None), key=lambda row: row.recall or 0.0)[:5]
    console.print(
        "least recalled: " + ", ".join(f"{escape(row.name)} {100 * (row.recall or 0):.0f} %" for row in worst)
    )


def show_backbones(entries: Sequence[Entry], *, as_json: bool) -> None:
    """The catalogue."""
    if as_json:
        print(json.dumps([asdict(entry) for entry in entries], indent=1))
        return
    console = Console(emoji=False)
    table = Table(box=None, header_style="dim")
    table.add_column("backbone", no_wrap=True)  # to be typed
    for name in ("parameters", "input", "licence", "here"):
        table.add_column(name)
    for entry in entries:
        table.add_row(
            entry.name,
            f"{entry.parameters / 1e6:.1f} M" if entry.parameters else "",
            f"{entry.input} px" if entry.input else "",
            entry.licence,
            "[green]yes[/]" if entry.on_this_machine else "no",
        )
    console.print(table)
    console.print("[dim]To bring one that is not here:  headstart backbones get NAME[/]", soft_wrap=True)
    console.print(
        "[dim]Any timm name works, from the internet or from a local file:  headstart fit DATA --backbone NAME --weights FILE[/]",
        soft_wrap=True,
    )


def show_cache(store: Store, *, as_json: bool) -> None:
    """What the store holds, by kind."""
    entries = store.entries()
    if as_json:
        rows = [{"kind": e.kind, "path": str(e.path), "bytes": e.bytes, "used": e.used} for e in entries]
        print(json.dumps({"root": str(store.root), "entries": rows}, indent=1))
        return
    console = Console(emoji=False)
    console.print(f"{escape(str(store.root))}  {sum(e.bytes for e in entries) / 1e6:,.1f} MB", soft_wrap=True)
    table = Table("kind", "entries", "MB", "last used", box=None, header_style="dim")
    for kind in sorted({entry.kind for entry in entries}):
        those = [entry for entry in entries if entry.kind == kind]
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(max(entry.used for entry in those)))
        table.add_row(kind, str(len(those)), f"{sum(e.bytes for e in those) / 1e6:,.1f}", used)
    if entries:
        console.print(table)
        console.print("[dim]headstart cache clear   drops all of it; it is computed again when needed[/]")
