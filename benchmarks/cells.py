"""What tables are made of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

Case = TypeVar("Case")


def digits(value: float, count: int = 1) -> str:
    """A number with as many decimals."""
    return f"{value:.{count}f}"


def percent(share: float, count: int = 1) -> str:
    """A share as a percentage with as many decimals."""
    return digits(100 * share, count)


def headed(head: str) -> list[str]:
    """The first two lines of a table: its columns, and the rule below them."""
    return [head, "|" + "---|" * (head.count("|") - 1)]


def chance(p: float) -> str:
    """A p-value."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def commits(record: Any) -> str:
    """How many runs in a record, however deep, are of which commit, in words, the commonest first."""
    return ", ".join(f"{count} of {name}" for name, count in Counter(_commits(record)).most_common())


def _commits(record: Any) -> Iterator[str]:
    if isinstance(record, Mapping) and "commit" in record:
        yield record["commit"]
    elif isinstance(record, Mapping | list):
        for part in record.values() if isinstance(record, Mapping) else record:
            yield from _commits(part)


def sets_of(cases: Mapping[str, Case]) -> dict[str, list[Case]]:
    """The cases of each data set, the first word of their names."""
    found: dict[str, list[Case]] = {}
    for name, case in cases.items():
        found.setdefault(name.split()[0].rstrip(","), []).append(case)
    return found


def by_size(cases: Mapping[str, Any]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The cases of each size, in the order in which they were measured."""
    for size in dict.fromkeys(case["size"] for case in cases.values()):
        yield size, [case for case in cases.values() if case["size"] == size]


def ways_of(case: Mapping[str, Any]) -> list[str]:
    """What a case has several scores of, in a list."""
    return [key for key, value in case.items() if isinstance(value, list)]
