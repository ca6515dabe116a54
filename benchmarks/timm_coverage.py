"""Cut one model of every timm architecture family and run the contract test on it.

    python benchmarks/timm_coverage.py            # all families; writes the JSON and the table in the docs
    python benchmarks/timm_coverage.py --only levit,nest
    python benchmarks/timm_coverage.py --missing  # only families that the JSON does not hold yet
    python benchmarks/timm_coverage.py --written  # whether each can be written down, alone
    python benchmarks/timm_coverage.py --table    # the table alone, from the JSON

Per family: the variant with the fewest parameters, random weights, a small input where the architecture
allows one.
Every case runs in a process of its own with a time limit, so that one network cannot take the others down.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import warnings
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "timm_coverage.json"
TABLE = ROOT / "docs" / "backbones.md"
BEGIN, END = "<!-- coverage: begin -->", "<!-- coverage: end -->"
LIMIT_SECONDS = 900


def families() -> dict[str, list[str]]:
    """Architecture module -> its model names."""
    import timm
    from timm.models import list_modules

    return {module: timm.list_models(module=module) for module in list_modules()}


def parameters(name: str) -> int:
    """Parameters of a variant, counted without memory for them where the constructor allows."""
    import timm
    import torch

    try:
        with torch.device("meta"):
            network = timm.create_model(name, num_classes=0)
    except (RuntimeError, NotImplementedError, ValueError, TypeError):
        network = timm.create_model(name, num_classes=0)
    return sum(parameter.numel() for parameter in network.parameters())


def one(name: str, *, alone: bool) -> dict[str, object]:
    """Cut and check one model, or see alone whether it can be written down; a failure is a result like any other."""
    import timm
    import torch

    from headstart.backbones import written
    from headstart.backbones.backbone import InputSpec, Origin
    from headstart.backbones.check import check_backbone
    from headstart.backbones.partition import partition
    from headstart.errors import PartitionError

    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=0).eval()
    config = network.pretrained_cfg
    full = tuple(config["input_size"][1:])
    small = tuple(config["min_input_size"][1:]) if config.get("min_input_size") else (128, 128)
    sizes = [full] if config.get("fixed_input_size") or small[0] >= full[0] else [small, full]
    answer: dict[str, object] = {}
    for size in sizes:
        begin = time.perf_counter()
        try:
            backbone = partition(network, InputSpec(size=size), Origin(f"timm:{name}", "", "", "", ""))
            cut = time.perf_counter()
            answer = {
                "input": list(size), "stages": len(backbone.stages), "names": list(backbone.names),
                "widths": list(backbone.widths), "gflops": round(sum(backbone.flops) / 1e9, 3),
                "tensors_at_cuts": max(len(shapes) for shapes in backbone.shapes),
                "seconds_to_cut": round(cut - begin, 2),
            }  # fmt: skip
            if alone:
                return {"written": written.write(backbone) is not None}
            check_backbone(backbone)
            answer |= {"ok": True, "seconds_to_check": round(time.perf_counter() - cut, 1)}
            return {**answer, "written": written.write(backbone) is not None}
        except PartitionError as error:
            answer |= {"ok": False, "input": list(size), "error": f"PartitionError: {error}"}
    return answer


def sweep(only: list[str], missing: bool, *, alone: bool) -> None:
    """Run the families one after the other and write the JSON after each."""
    from headstart.runtime import environment

    known = json.loads(RESULT.read_text()) if RESULT.is_file() else {"families": {}}
    cases: dict[str, dict[str, object]] = known["families"]
    everything = families()
    for family, names in everything.items():
        if (only and family not in only) or (missing and family in cases):
            continue
        counts = {name: parameters(name) for name in names}
        name = min(counts, key=lambda n: (counts[n], n))
        command = [sys.executable, __file__, "--one", name, *["--written"] * alone]
        case: dict[str, object] = {"model": name, "variants": len(names), "parameters": counts[name]}
        case = {**cases[family], **case} if alone else case
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False)
            lines = done.stdout.strip().splitlines()
            case |= json.loads(lines[-1]) if done.returncode == 0 else {"ok": False, "error": done.stderr[-400:]}
        except subprocess.TimeoutExpired:
            case |= {"ok": False, "error": f"longer than {LIMIT_SECONDS} s"}
        cases[family] = case
        print(family, name, "ok" if case["ok"] else case["error"], flush=True)
        RESULT.parent.mkdir(parents=True, exist_ok=True)
        covered = sum(bool(case["ok"]) for case in cases.values())
        summary = {"covered": covered, "run": len(cases), "of": len(everything), "environment": environment()}
        RESULT.write_text(json.dumps({**summary, "families": dict(sorted(cases.items()))}, indent=1) + "\n")


def write_table() -> None:
    """Put the table of the JSON between the markers of the docs page."""
    result = json.loads(RESULT.read_text())
    versions, left = result["environment"], result["of"] - result["run"]
    written = sum(bool(case.get("written")) for case in result["families"].values())
    unrun = f"; {left} have not been run yet" if left else ""
    lines = [
        BEGIN, "",
        f"{result['covered']} of {result['of']} families pass{unrun} "
        f"(timm {versions['timm']}, torch {versions['torch']}). {written} "
        "can be [written down](#how-a-network-is-written-down).", "",
        "| family | smallest variant | M parameters | input | stages | widths | result | written down |",
        "|---|---|---:|---:|---:|---|---|---|",
    ]  # fmt: skip
    by_result: defaultdict[bool, int] = defaultdict(int)
    for family, case in result["families"].items():
        by_result[case["ok"]] += 1
        widths = " ".join(str(width) for width in case.get("widths", []))
        outcome = "passes" if case["ok"] else case["error"].splitlines()[-1][:110].replace("|", "/")
        lines.append(
            f"| {family} | `{case['model']}` | {case['parameters'] / 1e6:.1f} | "
            f"{case.get('input', ['?'])[0]} "
            f"| {case.get('stages', '')} | {widths} | {outcome} | {'yes' if case.get('written') else 'no'} |"
        )
    page = TABLE.read_text(encoding="utf-8")
    head, tail = page.split(BEGIN)[0], page.split(END)[1]
    TABLE.write_text(head + "\n".join([*lines, "", END]) + tail, encoding="utf-8")
    print(f"{by_result[True]} pass, {by_result[False]} do not")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", help="check one model and print JSON")
    parser.add_argument("--only", default="", help="comma-separated families")
    parser.add_argument("--table", action="store_true", help="write the table from the JSON")
    parser.add_argument("--written", action="store_true", help="see alone whether each can be written down")
    parser.add_argument("--missing", action="store_true", help="skip families that the JSON holds")
    given = parser.parse_args()
    if given.one:
        print(json.dumps(one(given.one, alone=given.written)))
    elif given.table:
        write_table()
    else:
        sweep([name for name in given.only.split(",") if name], given.missing, alone=given.written)
        write_table()


if __name__ == "__main__":
    main()
