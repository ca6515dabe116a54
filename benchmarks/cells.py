"""What tables are made of."""

from __future__ import annotations


def percent(value: float) -> str:
    """A share as a percentage with one decimal."""
    return f"{100 * value:.1f}"


def headed(head: str) -> list[str]:
    """The first two lines of a table: its columns, and the rule below them."""
    return [head, "|" + "---|" * (head.count("|") - 1)]


def chance(p: float) -> str:
    """A p-value."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
