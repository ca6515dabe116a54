"""timm's networks: by name, with weights from a pip package, the Hugging Face hub or a file."""

from __future__ import annotations

import contextlib
import urllib.error
import urllib.request
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data.config import resolve_data_config
from torch import Tensor, nn

from headstart.backbones.backbone import Backbone, InputSpec, Origin
from headstart.backbones.bundled import BUNDLED, CLASSIFIER, locate
from headstart.backbones.catalog import unknown
from headstart.backbones.from_pip import by_pip
from headstart.backbones.partition import partition
from headstart.backbones.weights import UNREADABLE, classifier_of, from_file, load_strictly, sha256_of
from headstart.errors import BackboneError, UnknownBackbone, WeightsError

_PROBE_SECONDS = 5


def load_timm(
    name: str, weights: Path | None, pretrained: bool, input: InputSpec | None, side: int | None = None
) -> Backbone:
    """A timm network of this name (with or without a pretraining tag), cut into stages.

    weights: a file that overrides where weights come from. pretrained: False draws weights at random.
    input: overrides the preprocessing of the checkpoint; side: in pixels, overrides the size alone.

    Raises:
        UnknownBackbone: timm has no such name, or its weights are not here and the hub cannot be reached.
        WeightsError: the weights do not fit. PartitionError: the network cannot be cut, or takes no pictures of that side.
    """
    config = config_of(name)
    short = name.partition(".")[0]
    bundled = BUNDLED.get(short) if pretrained and weights is None else None
    if bundled and name not in (short, f"{short}.in1k"):
        bundled = None  # another pretraining of the same architecture was asked for
    file = locate(bundled) if bundled else None
    if bundled and file is None:  # never the hub's instead: one name must not mean two sets of weights
        raise unknown(f"timm:{name}", reason=f"its weights come by pip ({bundled.package}) and are not on this machine")
    size = input.size if input else (side, side) if side else None
    given: dict[str, Tensor] = {}
    spare = CLASSIFIER
    if weights is not None:
        network = build(name, size)
        given, origin = from_file(f"timm:{name}", weights)
        spare = _classifier_names(name, network)
        load_strictly(network, given, str(weights), spare)
    elif bundled and file:
        network = build(name, size)
        given, origin = by_pip(f"timm:{name}", bundled, file, network.state_dict())
        load_strictly(network, given, bundled.package, spare)
    elif pretrained:
        network, file, given, spare = _from_hub(name, size)
        url = f"https://huggingface.co/{config.hf_hub_id}"
        licence = config.license or "unknown"
        origin = Origin(f"timm:{name}", f"hub {config.hf_hub_id}", licence, url, sha256_of(file))
    else:
        network, origin = build(name, size), Origin(f"timm:{name}", "random weights", "none", "", "")
    spec = input or input_spec(network, bilinear=bool(bundled and bundled.bilinear))
    spec = spec if input or size is None else replace(spec, size=size)
    backbone = partition(network, spec, origin)
    backbone.classifier = classifier_of(given, spare, backbone.widths[-1])
    return backbone


def config_of(name: str) -> Any:
    """timm's record of a pretrained checkpoint: hub name, licence, preprocessing.

    Raises:
        UnknownBackbone: timm has no such name.
    """
    config = None
    if timm.is_model(name):
        with contextlib.suppress(RuntimeError):  # a former name, of which timm keeps no record
            config = timm.get_pretrained_cfg(name, allow_unregistered=False)
    if config is None:
        raise unknown(f"timm:{name}")
    return config


def input_spec(network: nn.Module, bilinear: bool = False) -> InputSpec:
    """The preprocessing that a timm network's checkpoint was evaluated with."""
    found = resolve_data_config(model=network)  # type: ignore[no-untyped-call]
    height, width = found["input_size"][1:]
    mean, std = (tuple(float(part) for part in found[key]) for key in ("mean", "std"))
    interpolation = "bilinear" if bilinear else str(found["interpolation"])
    return InputSpec((height, width), mean, std, interpolation, float(found["crop_pct"]))  # type: ignore[arg-type]


def hub_file(name: str) -> Path | None:
    """The checkpoint's file in the Hugging Face cache of this machine, or None."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    config = config_of(name)
    for file in _hub_files(config):
        with contextlib.suppress(LocalEntryNotFoundError):
            return Path(hf_hub_download(config.hf_hub_id, file, local_files_only=True))
    return None


def fetch_timm(name: str) -> Path:
    """Download a checkpoint from the Hugging Face hub into its cache; returns the file.

    Raises:
        UnknownBackbone: the hub cannot be reached, or timm knows no weights of that name.
    """
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    config = config_of(name)
    present = hub_file(name) if config.hf_hub_id else None
    if present:
        return present
    if not config.hf_hub_id:
        raise UnknownBackbone(f"timm has no weights for '{name}'. Choose a tag: timm.list_pretrained('{name}*').")
    # The hub's client tries for half a minute to reach a network that is not there; one short question first.
    if constants.HF_HUB_OFFLINE or not _reachable(constants.ENDPOINT):
        raise unknown(
            f"timm:{name}",
            reason=f"its weights are not on this machine and {constants.ENDPOINT} cannot be reached",
        )
    for file in _hub_files(config):
        try:
            return Path(hf_hub_download(config.hf_hub_id, file))
        except EntryNotFoundError:
            continue
        except (HfHubHTTPError, OSError) as error:
            raise unknown(f"timm:{name}", reason=f"the hub answered: {str(error).splitlines()[0]}") from error
    raise unknown(f"timm:{name}", reason=f"{config.hf_hub_id} holds no weights file that timm reads")


def _hub_files(config: Any) -> tuple[str, ...]:
    return (config.hf_hub_filename,) if config.hf_hub_filename else ("model.safetensors", "pytorch_model.bin")


def _from_hub(name: str, size: tuple[int, int] | None) -> tuple[nn.Module, Path, dict[str, Tensor], frozenset[str]]:
    """The network, its file, all weights, and the names of the classifier's.

    timm loads the whole checkpoint strictly (it knows how to convert foreign ones); the classifier is left out.
    """
    from safetensors import SafetensorError

    file, network = fetch_timm(name), build(name, size)
    try:
        whole = _create(name, size, classes=None, file=file)
    except (SafetensorError, OSError, *UNREADABLE) as error:  # a download that broke off, a disk that failed
        again = f"headstart backbones get {name}"
        raise WeightsError(
            f"{file} holds no weights of timm:{name}: it is damaged, or of another network. Delete it, and type: {again}"
        ) from error
    given, spare = whole.state_dict(), _classifier_names(name, network)
    load_strictly(network, given, str(file), spare)
    return network, file, given, spare


def build(name: str, size: tuple[int, int] | None = None) -> nn.Module:
    """timm's network of that name without a classifier, with weights drawn at random; `size` (height, width) in pixels, where it is
    not the usual one."""
    return _create(name, size, classes=0, file=None)


def _create(name: str, size: tuple[int, int] | None, classes: int | None, file: Path | None) -> nn.Module:
    options: dict[str, Any] = {} if classes is None else {"num_classes": classes}
    if file is not None:
        options |= {"pretrained": True, "pretrained_cfg_overlay": {"file": str(file)}}
    config = config_of(name)
    if size and size != tuple(config.input_size[1:]) and config.fixed_input_size:
        options["img_size"] = size  # transformers with a position per patch are built for one size
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside timm are not the person's
        network = timm.create_model(name, **options)
    assert isinstance(network, nn.Module)
    return network.eval()


def _classifier_names(name: str, network: nn.Module) -> frozenset[str]:
    """Names that only the network with its classifier has: built a second time, without memory, to compare."""
    try:
        with torch.device("meta"):
            whole = _create(name, None, classes=None, file=None)
    except (RuntimeError, NotImplementedError) as error:
        raise BackboneError(f"timm:{name} cannot be built: {error}") from error
    return frozenset(whole.state_dict().keys() - network.state_dict().keys())


def _reachable(url: str) -> bool:
    """Whether a server answers at all within seconds; an error status is an answer. Honours proxy settings."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=_PROBE_SECONDS):
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
