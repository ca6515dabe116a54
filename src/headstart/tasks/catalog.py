"""The table of tasks: one line each."""

from __future__ import annotations

from collections.abc import Mapping

from headstart.tasks.classification import Classification
from headstart.tasks.task import Task

TASKS: Mapping[str, Task] = {
    "classification": Classification(),
}
