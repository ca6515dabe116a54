"""Who is how right in the accuracy suite: means over the cases that all shown have in common, and paired tests against Headstart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from scipy.stats import binomtest, rankdata

from accuracy import FOREIGN, LP_FT, QUICK, SIZES
from cells import chance, commits, headed, percent

OURS, PROBE = "Headstart, default", "linear probe, scikit-learn"
HEADS = {"head": "Headstart, its best head", "last_stage_head": "Headstart, its last-stage head"}
ENOUGH = 2 / 3  # of the cases of whoever has most: fewer would leave the others hardly any in common
SAID = {"5": "5 per class", "20": "20 per class", str(QUICK): f"up to {QUICK} in all", "all": "all"}


@dataclass(frozen=True)
class Answered:
    """A contestant in a case: accuracy, seconds to the model, and `right`, a 1 per right answer by path, where that was kept; of
    Headstart, the paired 95 % interval of its gain over its own best head, where that was kept.

    Its best head reads more views than its first model: its seconds are those of the whole default where nothing else was recorded.
    """

    accuracy: float
    seconds: float
    right: str | None
    over_head: tuple[float, float] | None = None


@dataclass(frozen=True)
class Met:
    """A case: its set, size and seed, and who answered."""

    source: str
    size: str
    seed: int
    answered: Mapping[str, Answered]


def met(cases: Mapping[str, Any]) -> list[Met]:
    """The cases without those who failed; Headstart's own heads, which its run tests as well, stand as contestants of their own."""
    found = []
    for case in cases.values():
        answered: dict[str, Answered] = {}
        for name, row in case["contestants"].items():
            if "failed" in row or name == FOREIGN:
                continue
            gain = row.get("over head")
            interval = (gain["low"], gain["high"]) if gain else None
            answered[name] = Answered(row["accuracy"], row["seconds"], row["right"], interval)
            for model, title in HEADS.items() if name == OURS else ():
                same, took = model == row["chosen"], row["first"]
                if model == "head":
                    took = row.get("heads", row["seconds"])
                answered[title] = Answered(row["models"][model], took, row["right"] if same else None)
        found.append(Met(case["set"], case["size"], case["seed"], answered))
    return found


def parties(cases: Iterable[Met]) -> list[tuple[str, ...]]:
    """Who can be shown together: those who ran (nearly) everywhere; where others ran in fewer cases, these and they; and so on."""
    counts = Counter(name for case in cases for name in case.answered)
    found: list[tuple[str, ...]] = []
    while rest := [count for name, count in counts.items() if not found or name not in found[-1]]:
        found.append(tuple(name for name, count in counts.items() if count >= ENOUGH * max(rest)))
    return found


def shared(cases: Iterable[Met], names: Iterable[str]) -> list[Met]:
    """The cases in which all of them answered."""
    return [case for case in cases if set(names) <= set(case.answered)]


def together(cases: list[Met]) -> list[tuple[tuple[str, ...], list[Met]]]:
    """Who is shown together, and the cases that these have in common."""
    return [(names, common) for names in parties(cases) if (common := shared(cases, names))]


def standing(cases: list[Met], names: tuple[str, ...]) -> dict[str, tuple[float, float, int]]:
    """Mean accuracy and mean seconds to the model of everybody, and how many cases these are."""
    return {
        name: (
            mean(case.answered[name].accuracy for case in cases),
            mean(case.answered[name].seconds for case in cases),
            len(cases),
        )
        for name in names
    }


def ranked(cases: list[Met], names: tuple[str, ...]) -> list[str]:
    """Means of accuracy by size and in all, of rank, of the distance from the best in hindsight, of seconds; the best first."""
    sizes = [size for size in SIZES if any(case.size == size for case in cases)]
    grid = {name: [case.answered[name].accuracy for case in cases] for name in names}
    ranks = rankdata([[-value for value in grid[name]] for name in names], axis=0)
    best = [max(column) for column in zip(*grid.values(), strict=True)]
    columns = f"{' | '.join(SAID[size] for size in sizes)} | mean | mean rank | rank by size"
    rows = headed(f"| contestant | {columns} | behind the best | s to the model |")
    for name, rank in sorted(zip(names, ranks, strict=True), key=lambda pair: -mean(grid[pair[0]])):
        by_size = [mean(case.answered[name].accuracy for case in cases if case.size == size) for size in sizes]
        behind = mean(top - own for top, own in zip(best, grid[name], strict=True))
        seconds = mean(case.answered[name].seconds for case in cases)
        shown = " | ".join(percent(value) for value in [*by_size, mean(grid[name])])
        placed = " / ".join(f"{rank[[case.size == size for case in cases]].mean():.1f}" for size in sizes)
        rows.append(f"| {name} | {shown} | {rank.mean():.1f} | {placed} | {percent(behind)} | {seconds:.0f} |")
    return rows


def ranks_by_size(cases: list[Met], names: tuple[str, ...]) -> dict[str, tuple[float, float]]:
    """By size: the mean rank of Headstart's default, and the best mean rank of a contestant that is not Headstart."""
    found = {}
    for size in dict.fromkeys(case.size for case in cases):
        grid = [[-case.answered[name].accuracy for case in cases if case.size == size] for name in names]
        ranks = dict(zip(names, rankdata(grid, axis=0).mean(axis=1), strict=True))
        others = [rank for name, rank in ranks.items() if name not in {OURS, *HEADS.values()}]
        found[size] = (float(ranks[OURS]), float(min(others)))
    return found


def own_commits(cases: Mapping[str, Any], name: str = OURS) -> str:
    """How many of Headstart's own runs are of which commit."""
    return commits([case["contestants"].get(name, {}) for case in cases.values()])


def hours(cases: Mapping[str, Any], seed: int | None = None) -> float:
    """What all processes of the quick tier took, or those of a seed."""
    chosen = [case for case in cases.values() if seed in {None, case["seed"]}]
    return sum(row.get("whole", 0.0) for row in _quick(chosen)) / 3600


def _quick(cases: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [row for case in cases for name, row in case["contestants"].items() if name != FOREIGN]


@dataclass(frozen=True)
class Foretold:
    """Headstart's default in the cases in which it also ran foretold by other sets: both accuracies, that of the linear probe, and
    whether it answers otherwise."""

    size: str
    own: float
    foreign: float
    probe: float
    otherwise: bool


def foretold(cases: Mapping[str, Any]) -> list[Foretold]:
    """Every case in which all three ran to their ends."""
    found = []
    for case in cases.values():
        three = [case["contestants"].get(name) for name in (OURS, FOREIGN, PROBE)]
        if all(three) and not any("failed" in row for row in three):
            own, foreign, probe = three
            otherwise = (own["chosen"], own["rungs"]) != (foreign["chosen"], foreign["rungs"])
            found.append(Foretold(case["size"], own["accuracy"], foreign["accuracy"], probe["accuracy"], otherwise))
    return found


def beside_foretold(cases: Mapping[str, Any]) -> list[str]:
    """By size, and in all: as it comes, and foretold by other sets."""
    every = foretold(cases)
    groups = {
        SAID[size]: [case for case in every if case.size == size] for size in dict.fromkeys(c.size for c in every)
    }
    rows = headed(
        "| training pictures | cases | linear probe | as it comes | foretold by other sets | difference | other rungs or model |"
    )
    for name, some in {**groups, "all of these": every}.items():
        gaps = [100 * (case.foreign - case.own) for case in some]
        error = stdev(gaps) / len(gaps) ** 0.5 if len(gaps) > 1 else float("nan")
        shown = (percent(mean(getattr(case, key) for case in some)) for key in ("probe", "own", "foreign"))
        rows.append(
            f"| {name} | {len(some)} | {' | '.join(shown)} | {mean(gaps):+.1f} ± {error:.1f} | "
            f"{sum(case.otherwise for case in some)} |"
        )
    return rows


RIVALS = (HEADS["head"], LP_FT)


def surely_behind(cases: list[Met], among: tuple[str, ...] = RIVALS) -> tuple[int, int, int]:
    """In how many cases Headstart's default is behind one of them by more than chance, in how many that is not known, and of how
    many."""
    found = []
    for case in cases:
        ours = case.answered.get(OURS)
        rivals = [case.answered[name] for name in among if name in case.answered] if ours else []
        found.append([_surely(ours, other) for other in rivals if ours and other.accuracy > ours.accuracy])
    return sum(True in each for each in found), sum(None in each for each in found), len(found)


def by_set(cases: list[Met], among: tuple[str, ...] = RIVALS) -> list[str]:
    """Headstart's default on each set: the mean of its gains over others in the cases that both have, the least, and in how many
    cases it is behind, and surely so: by the paired interval over its own head, by McNemar's test at 5 % over others."""
    columns = [f"| over {name}: cases | mean | least | behind, surely" for name in among]
    rows = headed(f"| data set | cases | accuracy {' '.join(columns)} |")
    for source in dict.fromkeys(case.source for case in cases):
        own = [case for case in cases if case.source == source and OURS in case.answered]
        cells = [source, str(len(own)), percent(mean(case.answered[OURS].accuracy for case in own))]
        for name in among:
            pairs = [(case.answered[OURS], case.answered[name]) for case in shared(own, (name,))]
            gains = [ours.accuracy - other.accuracy for ours, other in pairs]
            behind = [pair for pair, gain in zip(pairs, gains, strict=True) if gain < 0]
            cells += (
                [str(len(pairs)), *(f"{100 * each:+.1f}" for each in (mean(gains), min(gains)))]
                if pairs
                else ["0", "", ""]
            )
            sure = [_surely(*pair) for pair in behind]
            cells.append(f"{len(behind)}, {'?' if None in sure else sum(map(bool, sure))}" if pairs else "")
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def _surely(ours: Answered, other: Answered) -> bool | None:
    """Whether Headstart is behind by more than chance; None where that was not kept."""
    if other.right is None or ours.right is None:
        return None if ours.over_head is None else ours.over_head[1] < 0
    pairs = list(zip(other.right, ours.right, strict=True))
    theirs, own = sum(x > y for x, y in pairs), sum(x < y for x, y in pairs)
    return theirs > own and sign_test(theirs, own) <= 0.05


def duels(cases: list[Met]) -> list[str]:
    """Everybody against Headstart's default on all cases that both have: cases and pictures won and lost, with exact sign tests."""
    rows = headed(
        f"| against {OURS} | cases | its accuracy | Headstart's | won, tied, lost | p over cases | pictures it alone has right | "
        "Headstart alone | p over pictures |"
    )
    for name in dict.fromkeys(name for case in cases for name in case.answered if name != OURS):
        pairs = [(case.answered[name], case.answered[OURS]) for case in shared(cases, (name, OURS))]
        if not pairs:
            continue
        won, lost = sum(a.accuracy > b.accuracy for a, b in pairs), sum(a.accuracy < b.accuracy for a, b in pairs)
        theirs, ours = mean(a.accuracy for a, _ in pairs), mean(b.accuracy for _, b in pairs)
        rows.append(
            f"| {name} | {len(pairs)} | {percent(theirs)} | {percent(ours)} | "
            f"{won}, {len(pairs) - won - lost}, {lost} | {chance(sign_test(won, lost))} | {' | '.join(_pictures(pairs))} |"
        )
    return rows


def _pictures(pairs: list[tuple[Answered, Answered]]) -> tuple[str, str, str]:
    """Pictures that one alone has right, pooled, and McNemar's exact test; nothing where answers were not kept one by one."""
    alone = [0, 0]
    for a, b in pairs:
        if a.right is None or b.right is None:
            return "", "", ""
        for x, y in zip(a.right, b.right, strict=True):
            alone[0] += x > y
            alone[1] += x < y
    return str(alone[0]), str(alone[1]), chance(sign_test(*alone))


def sign_test(won: int, lost: int) -> float:
    """Two-sided exact p of so uneven a split of what is not tied."""
    return 1.0 if won + lost == 0 else float(binomtest(won, won + lost).pvalue)


def held(cases: list[Met]) -> str:
    """Which cases they are, in words."""
    sets, seeds = (sorted({getattr(case, key) for case in cases}) for key in ("source", "seed"))
    sizes = [SAID[size] for size in SIZES if any(case.size == size for case in cases)]
    return f"{len(cases)} cases: {', '.join(sets)}; {', '.join(sizes)}; seeds {', '.join(map(str, seeds))}"


def drawn(cases: Iterable[str]) -> str:
    """Which draws they are, from names like "flowers, size 20, seed 0": by size the data sets with their seeds."""
    found: dict[str, dict[str, list[str]]] = {}
    for name in cases:
        source, size, seed = (part.split()[-1] for part in name.split(", "))
        found.setdefault(size, {}).setdefault(source, []).append(seed)
    said = [f"{SAID[size]}: {_listed(sets)}" for size, sets in found.items()]
    return f"Draws, with their seeds. {'; '.join(said)}."


def seeded(cases: Iterable[str | Mapping[str, Any]]) -> str:
    """The data sets with their seeds, from names like "flowers seed 0" or cases that hold `set` and `seed`."""
    found: dict[str, list[str]] = {}
    for case in cases:
        words = case.replace(",", "").split() if isinstance(case, str) else [case["set"], str(case["seed"])]
        found.setdefault(words[0], []).append(words[-1])
    return f"Draws, with their seeds: {_listed(found)}."


def _listed(found: Mapping[str, list[str]]) -> str:
    """Data sets with their seeds, each told once."""
    return ", ".join(f"{source} ({', '.join(dict.fromkeys(seeds))})" for source, seeds in found.items())


def points(cases: list[Met], names: tuple[str, ...]) -> list[tuple[str, float, float]]:
    """Contestant, mean seconds to the model, mean accuracy."""
    answers = {name: [case.answered[name] for case in cases] for name in names}
    return [(name, mean(a.seconds for a in own), mean(a.accuracy for a in own)) for name, own in answers.items()]


def busiest(cases: Mapping[str, Any]) -> float:
    """The highest load average before anybody ran."""
    return max(row["load"] for row in _quick(cases.values()))


def failed(cases: Mapping[str, Any]) -> list[str]:
    """Who ended with an error, and where."""
    return [
        f"{who} on {name}"
        for name, case in cases.items()
        for who, row in case["contestants"].items()
        if "failed" in row
    ]
