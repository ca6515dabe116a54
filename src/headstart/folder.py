"""The folder of a run while it is being written: claimed by one run at a time, and never half written. No torch."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, final

from filelock import FileLock, Timeout

from headstart import runtime
from headstart.errors import OutputError
from headstart.options import Options

FORMAT = 1
CONFIG, CARD, WEIGHTS, LOG = "config.json", "model.json", "model.safetensors", "log.txt"
SEEN = "trained_on.txt"
SEEN_DIGITS = 16  # of a content digest: enough to know a picture by
WRITTEN = (SEEN, "audit.json", "plan.json", "predictions.csv", "doubts.csv", "report.html", "metrics.json")


@final
@dataclass(frozen=True)
class Folder:
    """The run folder while this process writes it; `path` is None for a run that is kept in memory.

    `stale`: what lies here is another run's, to be replaced; it stays until `begin`. `bound`: only a run on the same data, which lie
    in memory and have no name, may replace what lies here. `title`: what the run is called: after its data, or after its folder where
    they lie in memory; "" where there is neither.
    """

    path: Path | None
    config: dict[str, Any]
    _lock: FileLock | None = field(default=None, repr=False)
    _made: bool = field(default=False, repr=False)
    resumed: bool = False
    stale: bool = False
    bound: bool = False
    data: str = ""
    title: str = ""

    @classmethod
    def claim(
        cls,
        out: str | Path | None,
        source: object,
        options: Options,
        *,
        network: str | None = None,
        overwrite: bool = False,
        command: str | None = None,
    ) -> Folder:
        """Make the folder, or take the one that an interrupted run with the same options left. `network`: one of the caller's own, its
        class first.

        Raises:
            OutputError: where it cannot be written, another run is writing it, or it holds a run with other options.
        """
        config = {
            "format": FORMAT,
            "source": _described(source),
            "options": asdict(options),
            "network": network,
            "versions": runtime.versions(),
        }
        path = None if out is None else Path(out)
        title = _named(source) or ("" if path is None else _named(path))
        place = _described(source) if isinstance(source, str | Path) else source
        config["command"] = command or reproduce(place, options, path, network)
        if path is None:
            return cls(None, config, title=title)
        lock, made = FileLock(path / ".lock", timeout=0), not path.exists()
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout as error:
            raise OutputError(
                f"Another run is writing '{path}' now. Wait for it, or give another folder with --out."
            ) from error
        except OSError as error:
            raise OutputError(
                f"Cannot write the run folder '{path}': {error.strerror or error}. Give another one with --out."
            ) from error
        claimed = cls(path, config, lock, made, title=title)
        try:
            claimed = replace(claimed._settled(overwrite), bound=not overwrite and not isinstance(source, str | Path))
        except BaseException:
            claimed.__exit__()  # a folder that is not ours keeps no trace of the question
            raise
        return claimed

    def _settled(self, overwrite: bool) -> Folder:
        """The same, once it is known what lies here: nothing, a run of the same options, or what `overwrite` allows to replace."""
        assert self.path is not None
        others = [p.name for p in self.path.iterdir() if p.name not in (".lock", LOG, CONFIG)]
        before, more = self._before(), "Give another folder with --out, or --overwrite to"
        same = before is not None and all(
            before.get(key) == self.config[key] for key in ("source", "options", "network")
        )
        if before is not None and others and not same and not overwrite:  # without others nothing is there to lose
            raise OutputError(f"'{self.path}' holds a run on other data or with other options. {more} replace it.")
        if before is None and others and not overwrite:
            raise OutputError(f"'{self.path}' is not empty and holds no run ({others[0]}, …). {more} write into it.")
        if not same and others:
            return replace(self, stale=True)
        data = str(before.get("data", "")) if same and before is not None else ""
        self.is_of(data)
        return replace(self, resumed=same and not (self.path / "metrics.json").exists(), data=data)

    def _before(self) -> dict[str, Any] | None:
        """What the run that lies here was asked for; None where there is none, or that cannot be read."""
        assert self.path is not None
        with contextlib.suppress(OSError, ValueError):
            found = json.loads((self.path / CONFIG).read_text(encoding="utf-8"))
            return found if isinstance(found, dict) else None
        return None

    def is_for(self, data: str) -> None:
        """Stop before what lies here is replaced by a run on other data, by their digest, where they lie in memory and have no name.

        Raises:
            OutputError: where that would happen.
        """
        if self.bound and self.data not in ("", data):
            raise OutputError(
                f"'{self.path}' holds a run on other data. Give another folder, or overwrite=True to replace it."
            )

    def begin(self) -> None:
        """Remove what another run left here, as there will be a model in its place: what is interrupted from here on must not leave
        an old model beside new options."""
        if self.path is not None and self.stale:
            for name in (CARD, WEIGHTS, *WRITTEN):
                (self.path / name).unlink(missing_ok=True)
            self.is_of("")

    def __enter__(self) -> Folder:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._lock is None or self.path is None:
            return
        # What could not be done leaves no run behind, which would refuse other options; an interrupt can be gone on from.
        bare = bool(exc) and isinstance(exc[1], Exception)
        with contextlib.suppress(OSError):
            bare = bare and {p.name for p in self.path.iterdir()} <= {CONFIG, LOG, ".lock"}
            for name in (CONFIG, LOG) if bare else ():
                (self.path / name).unlink(missing_ok=True)
        self._lock.release()
        with contextlib.suppress(OSError):
            (self.path / ".lock").unlink(missing_ok=True)
            if bare and self._made:
                self.path.rmdir()

    def holds_model(self, data: str) -> bool:
        """Whether a model of the same options and the same data, by their digest, lies here."""
        return self.path is not None and self.data == data and (self.path / CARD).exists()

    def is_of(self, data: str) -> None:
        """Note the digest of the data that the model here is made from."""
        self.write(CONFIG, json.dumps({**self.config, "data": data}, indent=1))

    def write(self, name: str, text: str) -> None:
        """Write one file of the folder, atomically."""
        if self.path is not None:
            write_atomically(self.path / name, text.encode("utf-8", errors="backslashreplace"))


def _described(source: object) -> str:
    if isinstance(source, str | Path):
        return str(Path(source).expanduser().absolute())
    return f"{type(source).__module__}.{type(source).__name__} in memory"


def reproduce(source: object, options: Options, folder: Path | None, network: str | None = None) -> str:
    """What gives this run again, with only what differs from the defaults: a command, or a line of Python for data in memory, or for a
    network of the caller's own."""
    given = {
        each.name: getattr(options, each.name)
        for each in fields(options)
        if getattr(options, each.name) != each.default or each.name == "seed"
    }
    if network is not None or not isinstance(source, str | Path):
        said = ", ".join(f"{name}={value!r}" for name, value in given.items())
        data = repr(str(source)) if isinstance(source, str | Path) else type(source).__name__
        place = f"{str(folder)!r}, " if folder is not None else ""
        own = "" if network is None else f", module={network.split()[0]}"
        return f"headstart.fit({data}, {place}options=headstart.Options({said}){own})"
    words = ["headstart", "fit", str(source), *(["--out", str(folder)] if folder is not None else [])]
    for name, value in given.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", "none" if value is None else str(value)]
    return shlex.join(words)


def trained_on(folder: Path) -> frozenset[str]:
    """The first digits of the content digests of the pictures that the model of a run has seen; empty where unknown."""
    kept = folder / SEEN
    return frozenset(kept.read_text(encoding="utf-8", errors="replace").split()) if kept.exists() else frozenset()


def report_of(run: Path) -> Path:
    """The report page of a run.

    Raises:
        OutputError: where there is none.
    """
    page = run / "report.html"
    if not page.is_file():
        raise OutputError(
            f"'{run}' has no report.html. Give the run folder that 'headstart fit' wrote, or run fit again."
        )
    return page.resolve()


def free_folder(source: object) -> Path:
    """`runs/<name of the data>` as the default place of a run."""
    return Path("runs") / (_named(source) or "run")


def _named(source: object) -> str:
    """The name of a folder or file; "" of what lies in memory."""
    return Path(source).expanduser().resolve().name if isinstance(source, str | Path) else ""


def write_atomically(path: Path, payload: bytes) -> None:
    """Write a file so that a kill leaves the old one or the new one, never half of it.

    Raises:
        OutputError: where it cannot be written.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(payload)
        part.replace(path)
    except OSError as error:
        raise OutputError(
            f"Cannot write '{path}': {error.strerror or error}. Give another folder with --out."
        ) from error
    finally:
        part.unlink(missing_ok=True) if part.parent.is_dir() else None
