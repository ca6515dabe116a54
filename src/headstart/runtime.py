"""The machine: device, threads, seed, versions, memory, cache folder, progress. Sees no other room but `errors`."""

from __future__ import annotations

import gc
import math
import os
import platform
import random
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    import torch

A = TypeVar("A")
B = TypeVar("B")
own_process = False  # whether the process was started as the command `headstart`, and ends with it
_PACKAGES = ("headstart", "torch", "torchvision", "timm", "numpy", "pillow", "scikit-learn", "safetensors")


def cache_folder() -> Path:
    """The folder for everything that can be recomputed: `HEADSTART_CACHE`, else the platform's cache folder."""
    given = os.environ.get("HEADSTART_CACHE")
    if given:
        return Path(given).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("headstart", appauthor=False))


def device() -> torch.device:
    """The fastest device that torch can use here: CUDA, else the CPU."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def cpu_count() -> int:
    """Cores that this process may run on (containers and affinity masks counted)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def patient_threads() -> None:
    """Let idle OpenMP threads soon sleep instead of spin; effective only before torch is first imported.

    Beside other programs, threads that spin at every barrier cost a factor of three (measured: 8 against 23 images/s). Those
    that sleep at once cost a factor of 1.4 where nothing else runs, so they spin for some microseconds first.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.environ.setdefault("GOMP_SPINCOUNT", "4000")


@contextmanager
def importing() -> Iterator[None]:
    """Pause the garbage collector while torch and timm are imported: looking for garbage among what stays for good takes a
    quarter of that time (measured: 3.2 instead of 4.2 s). The command `headstart` never looks there again: 0.2 s every time."""
    collected = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if own_process:
            gc.freeze()
        if collected:
            gc.enable()


def workers(count: int) -> ThreadPoolExecutor:
    """Threads each of which runs torch on one thread. Whoever makes them gives torch its number of threads back (`threads_kept`)."""
    import torch

    return ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,))


_users = threading.Lock()
_threads: list[int] = []  # torch's number before, once for each user
_patience: list[float] = []  # the interval that was set before, once for each user


@contextmanager
def threads_kept() -> Iterator[None]:
    """Afterwards torch runs on as many threads as before; where several use this at once, as before the first of them."""
    import torch

    with _users:
        _threads.append(_threads[0] if _threads else torch.get_num_threads())
    try:
        yield
    finally:
        with _users:
            torch.set_num_threads(_threads.pop())  # every one of them: torch has a number of its own for each thread


@contextmanager
def _impatient() -> Iterator[None]:
    """Between two short operations a worker need not wait 5 ms for another: 7 % faster. The last user sets it back."""
    with _users:
        _patience.append(_patience[0] if _patience else sys.getswitchinterval())
        sys.setswitchinterval(min(_patience[0], 5e-4))
    try:
        yield
    finally:
        with _users:
            before = _patience.pop()
            if not _patience:
                sys.setswitchinterval(before)


def parallel(function: Callable[[A], B], items: Iterable[A]) -> Iterator[B]:
    """`function` of every item, in order: one worker per core, each running torch on one thread.

    Whole batches side by side need no barriers inside a layer; and what one thread computes does not depend on the number of
    cores. At most two results per worker are held, so memory does not grow with the number of items.
    """
    count = cpu_count()
    waiting: deque[Future[B]] = deque()
    with _impatient(), threads_kept(), workers(count) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > 2 * count:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy's legacy generator and torch, so that what draws from them repeats."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  (third-party code may draw from it)
    torch.manual_seed(seed)


def versions() -> dict[str, str]:
    """Python, platform and the versions of the packages that decide a result."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def peak_memory_bytes() -> int:
    """The largest resident memory of this process so far, in bytes."""
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return int(getattr(psutil.Process().memory_info(), "peak_wset", psutil.Process().memory_info().rss))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


class Advance(Protocol):
    """Tells a progress bar that `count` more units are done; `fields` replace words in its description."""

    def __call__(self, count: int = 1, /, **fields: object) -> None: ...


class Progress(Protocol):
    """Opens a progress bar of `total` units; use as `with progress("Extracting", n, "images") as advance:`."""

    def __call__(self, description: str, total: int, unit: str = "images", /) -> AbstractContextManager[Advance]: ...


def nothing(count: int = 1, /, **fields: object) -> None:
    """An `Advance` that tells nobody."""


@contextmanager
def silent(description: str, total: int, unit: str = "images") -> Iterator[Advance]:
    """A progress bar that shows nothing: the default everywhere below the command line."""
    yield nothing


def _rate(done: float, seconds: float | None, recent: float | None, finished: bool) -> float | None:
    """Units a second, the lower of all so far and of late: what was remembered goes by in no time, and a first batch in one moment.
    None where it is too early to tell."""
    if not done or not seconds or (seconds < 2 and not finished):
        return None
    return done / seconds if recent is None or finished else min(recent, done / seconds)


@contextmanager
def bar(description: str, total: int, unit: str = "images") -> Iterator[Advance]:
    """A progress bar on stderr with rate and remaining time, after some seconds; silent where stderr is not a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn
    from rich.progress import Progress as RichProgress
    from rich.text import Text

    console = Console(stderr=True)
    if not console.is_terminal:
        with silent(description, total, unit) as quiet:
            yield quiet
        return

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            speed = _rate(task.completed, task.finished_time or task.elapsed, task.speed, task.finished)
            return Text(
                "" if speed is None else f"{speed:,.{0 if speed >= 10 else 2}f} {unit}/s", style="progress.data.speed"
            )

    class Remaining(ProgressColumn):
        def render(self, task: Task) -> Text:
            speed = _rate(task.completed, task.finished_time or task.elapsed, task.speed, task.finished)
            left = "-:--:--" if not speed else str(timedelta(seconds=math.ceil((task.remaining or 0) / speed)))
            return Text(left, style="progress.remaining")

    columns = (
        TextColumn("{task.description:<22}"),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(),
        Remaining(),
        TextColumn("{task.fields[note]}"),
    )
    with RichProgress(*columns, console=console, transient=False) as shown:
        task = shown.add_task(description, total=total, note="")

        def advance(count: int = 1, /, **fields: object) -> None:
            note = "  ".join(f"{name} {value}" for name, value in fields.items())
            if note:
                shown.update(task, advance=count, note=note)
            else:
                shown.update(task, advance=count)

        yield advance


def environment() -> Mapping[str, object]:
    """What a measurement must be read with: versions, processor and the widest instructions that torch has for it, cores, threads,
    device, memory."""
    import psutil
    import torch

    return {
        **versions(),
        "processor": _processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "device": str(device()),
        "memory_bytes": int(psutil.virtual_memory().total),
    }


def machine() -> str:
    """What speeds and rounding belong to: processors of one name may know other instructions."""
    import torch

    return f"{_processor()}, {torch.backends.cpu.get_cpu_capability()}"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
