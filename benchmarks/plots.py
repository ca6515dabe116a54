"""The plots of the documents: accuracy against time, and what grows with the number of pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scaling import EXTRACTED


def accuracy_against_time(
    shown: dict[str, list[tuple[str, float, float]]], path: Path, seconds_to: str = "a usable model"
) -> None:
    """Accuracy against time, a panel each, of (contestant, seconds, accuracy): what a person gets, and how long it takes. The time
    axis is logarithmic."""
    pyplot = plain_plots()
    figure, panels = pyplot.subplots(
        1, len(shown), figsize=(6.4 * len(shown), 4.2), squeeze=False, layout="constrained"
    )
    for panel, (name, contestants) in zip(panels[0], shown.items(), strict=True):
        for who, seconds, accuracy in contestants:
            ours = who.startswith("Headstart")
            place = seconds, 100 * accuracy
            panel.scatter(*place, color="#1f4fbf" if ours else "#8a8a94", s=42, zorder=3)
            where, side = ((0, 7), "center") if ours else ((-7, -2.5), "right")
            panel.annotate(who, place, where, textcoords="offset points", ha=side, fontsize=7.5)
        panel.set(
            xscale="log",
            xlabel=f"seconds, from files to {seconds_to}",
            ylabel="test accuracy, %",
            title=name,
        )
        panel.margins(0.3, 0.22)
        panel.grid(alpha=0.25)
    figure.savefig(path, metadata={"Date": None})


def pace_and_memory(cases: dict[str, Any], path: Path) -> None:
    """Milliseconds per picture and peak memory against the number of pictures."""
    pyplot = plain_plots()
    figure, (pace, memory) = pyplot.subplots(1, 2, figsize=(9.6, 3.4), layout="constrained")
    counts = [case["pictures"] for case in cases.values()]
    for phase, share in (("audit", 1.0), ("extract", EXTRACTED), ("head", EXTRACTED)):
        times = [1000 * case["phases"][phase] / (share * case["pictures"]) for case in cases.values()]
        pace.plot(counts, times, marker="o", label=phase)
    pace.set(xscale="log", ylim=(0, None), xlabel="pictures", ylabel="ms per picture")
    pace.legend(frameon=False)
    memory.plot(counts, [case["peak_memory_bytes"] / 1e9 for case in cases.values()], marker="o", color="#1f4fbf")
    memory.set(xscale="log", ylim=(0, None), xlabel="pictures", ylabel="peak memory, GB")
    for panel in (pace, memory):
        panel.grid(alpha=0.25)
    figure.savefig(path, metadata={"Date": None})


def plain_plots() -> Any:
    """matplotlib without a screen: the same figures give the same file, and words stay words."""
    import matplotlib

    matplotlib.use("agg")
    matplotlib.rcParams.update({"svg.hashsalt": "headstart", "svg.fonttype": "none", "font.family": "sans-serif"})
    from matplotlib import pyplot

    return pyplot
