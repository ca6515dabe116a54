"""The test answered worse than held-out training pictures: another place or time, or pictures that show one thing several times."""

from __future__ import annotations

import numpy as np

from headstart.data.audit import Finding, finding
from headstart.data.dataset import Dataset
from headstart.evaluate import TestReport
from headstart.race import Race
from headstart.verdict import percent

LEAST = 0.05  # share by which the test has to lie below
ERRORS = 3.0  # standard errors of the difference


def gap(heads: Race, dataset: Dataset, report: TestReport) -> tuple[Finding, ...]:
    """A warning where the head that won the race is right far less often on the sealed test set than out of fold.

    Both are of pictures that it has not seen, and on the test it has seen more of the others: the test should be the easier one.
    Pictures of one group are right or wrong together: errors are over groups.
    """
    if report.protocol != "sealed test":
        return ()
    told, tested = heads.accuracy, report.models["head"].accuracy.value
    error = float(
        np.hypot(
            max(heads.best.accuracy_se, _error(told, len(np.unique(dataset.groups[heads.pool])))),
            _error(tested, report.groups or report.images),
        )
    )
    if told - tested < max(LEAST, ERRORS * error):
        return ()
    message = (
        f"The test set is harder than the training pictures: the same head is right for {percent(told)} of {len(heads.pool):,} "
        f"training pictures out of fold, and for {percent(tested)} of the {report.images:,} test pictures, "
        f"{100 * (told - tested):.1f} ± {100 * error:.1f} points fewer."
    )
    next_step = (
        "Believe the test. If it comes from another place, time or camera, add training pictures from there; if several training "
        "pictures show one object, give them a group, so that choices are made on objects that were not seen."
    )
    return (finding("gap", "warning", message, next_step),)


def _error(share: float, count: int) -> float:
    """Standard error of a share of `count` pictures or groups, with two more of each sort, so that it is never zero (Agresti & Coull
    1998)."""
    drawn = (share * count + 2) / (count + 4)
    return float(np.sqrt(drawn * (1 - drawn) / (count + 4)))
