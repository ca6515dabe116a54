"""The main job. Its first steps need no network, and are taken before torch is imported: what is wrong with the data or the
folder is said at once, and pictures are decoded meanwhile."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import fields, replace
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING

from headstart import runtime
from headstart.backbones.bundled import usual_transform
from headstart.backbones.catalog import check_name, first_and_others
from headstart.data.ahead import Ahead
from headstart.errors import OptionError, WeightsError
from headstart.features.store import Store
from headstart.folder import Folder
from headstart.options import CHOICES, Options, allowed
from headstart.plan import Plan, read_plan
from headstart.planner import MODES
from headstart.request import audited
from headstart.story import Story

if TYPE_CHECKING:
    from torch import nn

    from headstart.backbones.backbone import InputSpec
    from headstart.run import Run


def fit(
    source: object,
    out: str | Path | None = None,
    options: Options | None = None,
    *,
    module: nn.Module | None = None,
    input: InputSpec | None = None,
    overwrite: bool = False,
    progress: runtime.Progress = runtime.silent,
    tell: Callable[[str], None] | None = None,
    command: str | None = None,
) -> Run:
    """The main job: the best classifier that a pretrained network can honestly be made into, with proof.

    `source` is a folder, a table, IDX or NPZ files, arrays or a Hugging Face data set; `out` the run folder, None to keep the run
    in memory; `module` a network of your own instead of a named backbone, and `input` the preprocessing that it expects; `tell`
    is called with each line of the log; `command` is what the report says was typed, where it was no `headstart fit`.

    Raises:
        HeadstartError: with what was got, what was expected, and what to do next.
        TypeError: `options` are none.
    """
    options = Options() if options is None else options
    if not isinstance(options, Options):
        raise TypeError(
            f"Got options of the type {type(options).__name__}, expected headstart.Options: "
            "fit(data, options=headstart.Options(budget=60))."
        )
    options = _plain(options)
    plan = _checked(options, module)
    story = Story(tell)
    network = None if module is None else _described(module, input)
    folder = Folder.claim(out, source, options, network=network, overwrite=overwrite, command=command)
    with folder, story.to(folder.path):
        if folder.resumed:
            story.say("an unfinished run with the same options lies here: going on with it")
        deadline = math.inf if options.budget is None else time.monotonic() + options.budget
        store = Store(limit=options.store_limit)
        with story.phase("audit"):
            dataset = audited(source, options, store, progress)
            folder.is_for(dataset.digest)
            story.dataset(dataset)
        first, _ = first_and_others(options.backbone)
        with Ahead.of(dataset, None if module is not None else usual_transform(first)) as ahead:
            with story.phase("import"), runtime.importing():
                from headstart.transfer import transfer
            return transfer(
                dataset,
                options,
                story,
                folder,
                store,
                deadline=deadline,
                module=module,
                input=input,
                given=plan,
                ahead=ahead,
                progress=progress,
            )


def _plain(options: Options) -> Options:
    """The same as files keep it: paths as text, numbers as Python's own in place of NumPy's."""
    plain: dict[str, str | int | float] = {}
    for name, value in ((each.name, getattr(options, each.name)) for each in fields(options)):
        if isinstance(value, os.PathLike):
            plain[name] = os.fsdecode(value)
        elif isinstance(value, Real) and not isinstance(value, int | float):
            plain[name] = int(value) if isinstance(value, Integral) else float(value)
    return replace(options, **plain)  # type: ignore[arg-type]


def _checked(options: Options, module: nn.Module | None) -> Plan | None:
    """What can be told before anything is read or written is not wrong with the options; the plan that they name, if it is a file.

    Raises:
        OptionError: a value that cannot be. UnknownBackbone: there is none of that name. WeightsError: there is no file of weights.
        PlanError: the plan is none of the usual ones, and no plan file that can be read.
    """
    for name in CHOICES:
        if getattr(options, name) not in allowed(name):
            raise OptionError(
                f"{name}={getattr(options, name)!r}: expected one of {', '.join(map(repr, allowed(name)))}."
            )
    for name, right, expected in (
        ("budget", options.budget is None or _is_above_zero(options.budget), "seconds above 0, or None"),
        ("store_limit", options.store_limit is None or _is_above_zero(options.store_limit), "bytes above 0, or None"),
        (
            "test_fraction",
            _is_above_zero(options.test_fraction) and options.test_fraction < 1,
            "a share between 0 and 1",
        ),
        ("seed", isinstance(options.seed, int) and 0 <= options.seed < 2**63, "a whole number, 0 to 2**63 - 1"),
    ):
        if not right:
            raise OptionError(f"{name}={getattr(options, name)!r}: expected {expected}.")
    if module is not None and (options.backbone != "auto" or options.weights is not None):
        raise OptionError("Got a network of your own, and a backbone or weights in the options. Give one of them.")
    check_name(options.backbone)
    if options.weights is not None and not Path(options.weights).is_file():
        raise WeightsError(
            f"there is no weights file at {options.weights}. Give the path of a .safetensors or .pth file."
        )
    return None if options.plan in MODES else read_plan(Path(options.plan))


def _is_above_zero(value: object) -> bool:
    return isinstance(value, int | float) and 0 < value < math.inf


def _described(module: nn.Module, input: InputSpec | None) -> str:
    """A network of the caller's own: its class, its input, and a digest of its weights."""
    from torch import Tensor

    from headstart.suffix import digest

    tensors = {name: each for name, each in module.state_dict().items() if isinstance(each, Tensor)}
    weights = {name: each.float() if each.is_floating_point() else each for name, each in tensors.items()}
    return f"{type(module).__qualname__} {input} {digest(weights)}"
