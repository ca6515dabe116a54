"""Weights files: read without running code, digest, and strict loading with the classifier left out."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from headstart.backbones.backbone import Origin
from headstart.errors import WeightsError

COUNTER = "num_batches_tracked"
# What torch.load raises for files that it has not written.
UNREADABLE = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    AttributeError,
    TypeError,
    OverflowError,
)
_WRAPPERS = (
    "state_dict",
    "model",
    "model_state_dict",
)  # where training scripts put the weights in a checkpoint


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_weights(path: Path) -> dict[str, Tensor]:
    """Name -> tensor of a `.safetensors` file, or of a torch checkpoint read with `weights_only=True`.

    Raises:
        WeightsError: there is no such file, or it holds something else than weights.
    """
    if not path.is_file():
        raise WeightsError(f"there is no weights file at {path}. Give the path of a .safetensors or .pth file.")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise WeightsError(f"{path} is not a safetensors file ({error}). Download it again.") from error
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise WeightsError(
            f"{path} cannot be read as plain weights: it is none, is damaged, or would run code, which is refused. "
            "Convert it on the machine where it was made, with safetensors.torch.save_file(state_dict, path)."
        ) from error
    if isinstance(loaded, Mapping):
        loaded = next((loaded[key] for key in _WRAPPERS if isinstance(loaded.get(key), Mapping)), loaded)
    if not isinstance(loaded, Mapping) or not all(isinstance(tensor, Tensor) for tensor in loaded.values()):
        raise WeightsError(f"{path} holds {type(loaded).__name__}, expected names with tensors. Save a state_dict.")
    if not all(isinstance(name, str) for name in loaded):
        raise WeightsError(
            f"{path} holds tensors by {type(next(iter(loaded))).__name__}, expected names. Save a state_dict."
        )
    parallel = all(name.startswith("module.") for name in loaded)  # saved from DataParallel
    return {name.removeprefix("module.") if parallel else name: tensor for name, tensor in loaded.items()}


def from_file(name: str, path: Path) -> tuple[dict[str, Tensor], Origin]:
    """The weights of a person's own file for the backbone of that name, and where they come from.

    Raises:
        WeightsError: there is no such file, or it holds something else than weights.
    """
    given = read_weights(path)
    return given, Origin(name, f"file {path.name}", "unknown", "", sha256_of(path))


def load_strictly(
    network: nn.Module, weights: Mapping[str, Tensor], source: str, spare: frozenset[str] = frozenset()
) -> None:
    """Copy weights into a network. `spare` names (the classifier's) may be present and are left out; all else
    is strict.

    Raises:
        WeightsError: names are missing or unexpected, or shapes differ.
    """
    own = network.state_dict()
    expect({name: tuple(tensor.shape) for name, tensor in own.items()}, weights, source, spare)
    network.load_state_dict({name: weights.get(name, tensor) for name, tensor in own.items()}, strict=True)


def expect(
    shapes: Mapping[str, tuple[int, ...]], weights: Mapping[str, Tensor], source: str, spare: frozenset[str]
) -> None:
    """Compare weights with names and shapes of a network's own; `spare` names may be present.

    Raises:
        WeightsError: names are missing or unexpected, or shapes differ.
    """
    # BatchNorm's step counter came later than many checkpoints and takes no part in the computation.
    missing = sorted(name for name in shapes.keys() - weights.keys() if not name.endswith(COUNTER))
    unexpected = sorted(weights.keys() - shapes.keys() - spare)
    misfit = [
        f"{name} {tuple(weights[name].shape)} instead of {shape}"
        for name, shape in shapes.items()
        if name in weights and tuple(weights[name].shape) != shape
    ]
    if missing or unexpected or misfit:
        faults = [("missing", missing), ("unexpected", unexpected), ("of another shape", misfit)]
        told = "; ".join(f"{len(names)} {what}, as {names[0]}" for what, names in faults if names)
        raise WeightsError(
            f"{source} does not fit this architecture: {told}. Name the backbone that the file was saved from."
        )


def classifier_of(weights: Mapping[str, Tensor], spare: frozenset[str], width: int) -> tuple[Tensor, Tensor] | None:
    """Weight (K, width) and bias (K,) of the linear classifier among the `spare` names; None where there is none."""
    given = [weights[name] for name in spare if name in weights]
    matrices = [tensor for tensor in given if tensor.ndim == 2 and tensor.shape[1] == width and len(tensor) > 1]
    rows = [tensor for tensor in given if tensor.ndim == 1]
    if len(given) != 2 or len(matrices) != 1 or len(rows) != 1 or len(rows[0]) != len(matrices[0]):
        return None
    return matrices[0].detach().float(), rows[0].detach().float()
