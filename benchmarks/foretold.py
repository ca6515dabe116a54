"""The command `headstart` with another forecast than the one that comes with it: `foretold.py FORECAST.json fit ...`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from headstart import forecast
from headstart.cli import command

if __name__ == "__main__":
    learnt = json.loads(Path(sys.argv.pop(1)).read_text(encoding="utf-8"))
    forecast.coefficients = lambda: learnt  # type: ignore[assignment, misc]
    command()
