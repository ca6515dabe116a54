"""The command line: one function per subcommand, no logic. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import atexit
import math
import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headstart import runtime
from headstart.errors import HeadstartError
from headstart.options import Options, allowed

if TYPE_CHECKING:
    from headstart.run import Run

app = typer.Typer(
    name="headstart",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="From a folder of labelled images to a proven classifier, offline, in minutes.",
    epilog="Start with:  headstart fit photos/     (one sub-folder per class)",
)
backbones_app = typer.Typer(
    invoke_without_command=True, help="List the pretrained networks that can be used, and bring one to this machine."
)
cache_app = typer.Typer(invoke_without_command=True, help="Show or clear what was computed once and is kept.")
app.add_typer(backbones_app, name="backbones")
app.add_typer(cache_app, name="cache")

Data = Annotated[
    str,
    typer.Argument(
        help="Folder with one sub-folder per class (or train/ val/ test/ with such sub-folders), a CSV or Parquet table, "
        "a folder of IDX files, or an .npz file.",
        show_default=False,
    ),
]
Trained = Annotated[Path, typer.Argument(help="The run folder that 'headstart fit' wrote.", show_default=False)]
PathColumn = Annotated[str, typer.Option(help="Tables: the column of picture paths.")]
LabelColumn = Annotated[str, typer.Option(help="Tables: the column of labels.")]
SplitColumn = Annotated[str, typer.Option(help="Tables: the column that says train, val or test.")]
GroupColumn = Annotated[str, typer.Option(help="Tables: the column of groups that must stay on one side of a split.")]
Unreadable = Annotated[str, typer.Option(help="What to do with unreadable files: skip, error.")]
Rare = Annotated[str, typer.Option(help="What to do with a class of one image: train (on it, untested), drop, error.")]
Seed = Annotated[int, typer.Option(min=0, help="Decides splits, views and training.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead.")]
Views = Annotated[
    int,
    typer.Option(
        min=0,
        help="Average the answer to each picture with those to so many crops of it, mirrored or not by chance. Three take four times "
        "as long, for slightly better probabilities; labels hardly change.",
    ),
]


def _versioned(wanted: bool) -> None:
    if wanted:
        import headstart

        typer.echo(f"headstart {headstart.__version__}")
        raise typer.Exit


@app.callback()
def about(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_versioned, is_eager=True)
    ] = False,
) -> None:
    """What comes before the name of a command."""


def command() -> None:
    """The process `headstart`: `main`, and then its end at once. Taking an interpreter with torch in it apart takes a second."""
    code: int | str | None = 0
    runtime.own_process = True
    try:
        main()
    except SystemExit as left:
        code = left.code
    if isinstance(code, str):
        _say(code)
    atexit._run_exitfuncs()  # private, but the only way to run what was registered without ending the interpreter
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        code = 141
    except OSError as error:
        _say(f"error: not all could be printed: {error.strerror}")
        code = 2
    os._exit(code if isinstance(code, int) else int(code is not None))


def main() -> None:
    """Entry point: errors meant for people become one message on stderr and exit code 2; Ctrl-C is 130."""
    try:
        app(standalone_mode=True)
    except HeadstartError as error:
        _say(f"error: {error}")
        sys.exit(2)
    except (KeyboardInterrupt, SystemExit) as stop:
        # Typer turns Ctrl-C into an exit of its own before it comes here, and a reader that has gone (`| head`) as well.
        if isinstance(stop, SystemExit) and isinstance(stop.__context__, BrokenPipeError):
            sys.exit(141)
        if isinstance(stop, SystemExit) and stop.code != 130:
            raise
        resumes = sys.argv[1:2] in (["fit"], ["demo"])
        more = " Nothing is lost: the same command goes on from the last finished epoch." if resumes else ""
        _say(f"Interrupted.{more}")
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has gone (`| head`): no more to say
        sys.exit(141)


@app.command()
def fit(
    data: Data,
    out: Annotated[Path | None, typer.Option(help="Run folder to write.", show_default="runs/<name of DATA>")] = None,
    backbone: Annotated[
        str,
        typer.Option(
            help="Pretrained network; see 'headstart backbones'. auto: those on this machine race, and two answer together where "
            "that promises more. A name: that one alone, which is faster. NAME@288: on pictures of so many pixels a side."
        ),
    ] = Options.backbone,
    weights: Annotated[Path | None, typer.Option(help="Local weights file for it: .safetensors, or .pth.")] = None,
    plan: Annotated[
        str,
        typer.Option(
            help="auto: let the evidence decide. head: only the head, nothing fine-tuned. full: fine-tune everything. "
            "Or the path of a plan.json."
        ),
    ] = Options.plan,
    budget: Annotated[
        str,
        typer.Option(
            help="Wall time to aim at, such as 90s, 10m, 2h (a bare number is seconds); or none. It bounds fine-tuning and the "
            "network from scratch."
        ),
    ] = "10m",
    seed: Seed = Options.seed,
    test_fraction: Annotated[
        float, typer.Option(help="Share to seal for the test where none is given.")
    ] = Options.test_fraction,
    unreadable: Unreadable = Options.unreadable,
    rare: Rare = Options.rare,
    mirror: Annotated[
        bool,
        typer.Option(help="Whether a mirrored image still shows its class; not so for text, or for left and right."),
    ] = Options.mirror,
    pair: Annotated[
        bool,
        typer.Option(
            help="Whether two networks may answer together where that promises more; a prediction then costs as much as both."
        ),
    ] = Options.pair,
    path_column: PathColumn = Options.path_column,
    label_column: LabelColumn = Options.label_column,
    split_column: SplitColumn = Options.split_column,
    group_column: GroupColumn = Options.group_column,
    precision: Annotated[str, typer.Option(help="Of the frozen stages: auto, float32, bfloat16.")] = Options.precision,
    engine: Annotated[
        str,
        typer.Option(
            help="What computes the features: eager (plain torch), openvino (needs the package), compile (torch.compile). "
            "auto: eager, or on long jobs openvino (CPU) or compile (GPU), where that is faster and gives the same features."
        ),
    ] = Options.engine,
    store_limit: Annotated[
        str, typer.Option(help="Room for cached results: 500MB, 20GB, 1.5TB (a bare number is bytes); or none.")
    ] = "20GB",
    overwrite: Annotated[bool, typer.Option(help="Replace another run in the run folder.")] = False,
) -> None:
    """Make the best classifier that a pretrained network can honestly be made into, with proof.

    The same command after Ctrl-C or a crash goes on where it stopped. What was computed once is kept, up to
    --store-limit, and not computed again.

    Examples:

        headstart fit photos/

        headstart fit labels.csv --label-column species --budget 30m

        headstart fit photos/ --plan head --out runs/quick
    """
    from headstart.fit import fit as transfer
    from headstart.folder import free_folder

    options = Options(
        backbone=backbone,
        weights=None if weights is None else str(weights),
        plan=plan,
        budget=_seconds(budget),
        seed=seed,
        store_limit=_bytes(store_limit),
        test_fraction=test_fraction,
        path_column=path_column,
        label_column=label_column,
        split_column=split_column,
        group_column=group_column,
        unreadable=_one_of("unreadable", unreadable),
        rare=_one_of("rare", rare),
        mirror=mirror,
        pair=pair,
        precision=_one_of("precision", precision),
        engine=_one_of("engine", engine),
    )
    folder = free_folder(data) if out is None else out
    run = transfer(data, folder, options, overwrite=overwrite, progress=runtime.bar, tell=_say)
    _show(run)


@app.command()
def inspect(
    data: Data,
    json: Json = False,
    unreadable: Unreadable = Options.unreadable,
    rare: Rare = Options.rare,
    path_column: PathColumn = Options.path_column,
    label_column: LabelColumn = Options.label_column,
    split_column: SplitColumn = Options.split_column,
    group_column: GroupColumn = Options.group_column,
    test_fraction: Annotated[
        float, typer.Option(help="Share to seal for the test where none is given.")
    ] = Options.test_fraction,
    seed: Seed = Options.seed,
) -> None:
    """Say what is in DATA and what is wrong with it: unreadable files, duplicates, small classes, leaks between splits."""
    from headstart.request import examined
    from headstart.show import show_audit

    options = Options(
        path_column=path_column,
        label_column=label_column,
        split_column=split_column,
        group_column=group_column,
        unreadable=_one_of("unreadable", unreadable),
        seed=seed,
        test_fraction=test_fraction,
        rare=_one_of("rare", rare),
    )
    audit = examined(data, options, progress=runtime.bar)
    if json:
        print(audit.model_dump_json(indent=1))
    else:
        show_audit(audit)
    if audit.errors:
        raise typer.Exit(1)


@app.command()
def predict(
    run: Trained,
    paths: Annotated[
        list[str],
        typer.Argument(
            help="Files, folders (searched for pictures), globs, or - for a list of paths on standard input.",
            show_default=False,
        ),
    ],
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line instead of CSV.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write to this file instead of standard output.")] = None,
    views: Views = 0,
) -> None:
    """Label pictures: path, label, probability, runner-up, and whether they seem to show none of the classes (unknown).

    Typicality is the share of known pictures that are at least as strange; where it is 0.05 or less, the picture is unknown.
    Unreadable pictures become rows with an error, and exit code 1; so do folders and globs that hold none, beside others.

    Examples:

        headstart predict runs/moths new/*.jpg

        find . -name '*.png' | headstart predict runs/moths - --json
    """
    with runtime.importing():
        from headstart import bundle
        from headstart.data.audit import left_aside
        from headstart.serve import Asked, write_predictions

    model, asked = bundle.load(run), Asked(paths)
    count, failed, unknown = write_predictions(model, asked, out, as_json=json, views=views, progress=runtime.bar)
    if aside := left_aside(asked.aside):
        _say(aside.words)
    if unknown:
        _say(f"Unknown, as they seem to show none of the classes: {unknown:,} of {count:,} pictures.")
    if model.unknown is None:
        _say("This model cannot tell unknown pictures: there were too few to learn it from, or its run did not end.")
    if failed:
        _say(f"{failed} of the pictures could not be read; their rows say why.")
        raise typer.Exit(1)


@app.command()
def evaluate(
    run: Trained,
    data: Data,
    json: Json = False,
    path_column: PathColumn = Options.path_column,
    label_column: LabelColumn = Options.label_column,
    group_column: GroupColumn = Options.group_column,
    unreadable: Unreadable = Options.unreadable,
    views: Views = 0,
) -> None:
    """Measure a trained model on another labelled set: every picture in DATA counts, whatever its split."""
    with runtime.importing():
        from headstart.serve import measure
        from headstart.show import show_scores

    report, warnings = measure(
        run,
        data,
        path_column=path_column,
        label_column=label_column,
        group_column=group_column,
        unreadable=_one_of("unreadable", unreadable),
        views=views,
        progress=runtime.bar,
    )
    for warning in warnings:
        _say(f"warning: {warning}")
    if json:
        print(report.model_dump_json(indent=1))
    else:
        show_scores(report)


@app.command()
def report(
    run: Trained,
    browser: Annotated[bool, typer.Option(help="Open it in the web browser, not only say where it is.")] = True,
) -> None:
    """Open the report of a run."""
    from headstart.folder import report_of

    page = report_of(run)
    print(page)
    if browser:
        from headstart.report.report import open_in_browser

        open_in_browser(page)


@backbones_app.callback()
def backbones(context: typer.Context, json: Json = False) -> None:
    """List the pretrained networks that can be used: parameters, input size, licence, and what is on this machine."""
    if context.invoked_subcommand is None:
        from headstart.backbones.catalog import catalog
        from headstart.show import show_backbones

        show_backbones(catalog(), as_json=json)


@backbones_app.command("get")
def backbones_get(
    name: Annotated[str, typer.Argument(help="Such as mobilenetv2_100, or any timm name.", show_default=False)],
) -> None:
    """Bring a backbone's weights to this machine; the digest is verified where it is known."""
    from headstart.backbones.catalog import fetch

    _say(f"Fetching {name} …")
    print(fetch(name))


@cache_app.callback()
def cache(context: typer.Context, json: Json = False) -> None:
    """Show where computed results are kept and how much room they take."""
    if context.invoked_subcommand is None:
        from headstart.features.store import Store
        from headstart.show import show_cache

        show_cache(Store(), as_json=json)


@cache_app.command("clear")
def cache_clear() -> None:
    """Drop all computed results; the next fit computes them again. Downloaded weights stay."""
    from headstart.features.store import Store

    store = Store()
    print(f"{store.clear() / 1e6:,.1f} MB freed in {store.root}")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Run folder to write.")] = Path("runs/demo"),
    seed: Seed = Options.seed,
    overwrite: Annotated[bool, typer.Option(help="Replace another run in that folder.")] = False,
) -> None:
    """The whole path on 5,000 real handwritten digits, with what came with the installation; under five minutes."""
    from headstart.demo import digits
    from headstart.fit import fit as transfer

    run = transfer(
        digits(),
        out,
        Options(backbone="tf_efficientnet_lite0", seed=seed, budget=280.0, mirror=False),
        overwrite=overwrite,
        progress=runtime.bar,
        tell=_say,
        command=shlex.join(["headstart", "demo", "--out", str(out), "--seed", str(seed)]),
    )
    _show(run)


def _show(run: Run) -> None:
    from headstart.show import show_run

    show_run(run)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _one_of(name: str, value: str) -> Any:
    if value not in allowed(name):
        raise typer.BadParameter(f"got '{value}', expected one of: {', '.join(allowed(name))}", param_hint=f"--{name}")
    return value


def _seconds(text: str) -> float | None:
    """ "90s", "10m", "1.5h", plain seconds, or "none"."""
    return _amount("--budget", text, {"s": 1.0, "m": 60.0, "h": 3600.0}, "90s, 10m, 2h or none")


def _bytes(text: str) -> int | None:
    """ "500MB", "20GB", "1.5TB", plain bytes, or "none"."""
    units = {"kb": 1e3, "mb": 1e6, "gb": 1e9, "tb": 1e12}
    found = _amount("--store-limit", text, units, "500MB, 20GB, 1.5TB or none")
    return None if found is None else int(found)


def _amount(option: str, text: str, units: Mapping[str, float], examples: str) -> float | None:
    """A number above zero, perhaps with a unit behind it; None for "none"."""
    lowered = text.strip().lower()
    if lowered == "none":
        return None
    unit = next((unit for unit in units if lowered.endswith(unit)), "")
    try:
        value = float(lowered.removesuffix(unit)) * units.get(unit, 1.0)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise typer.BadParameter(f"got '{text}', expected such as {examples}, and more than 0", param_hint=option)
    return value
