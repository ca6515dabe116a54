"""Public names are pinned: what is in `headstart.__all__` stays, and each name is the thing that it says."""

from __future__ import annotations

import dataclasses
import inspect
from importlib import import_module

import pytest

import headstart
from headstart import errors

NAMES = [
    "Backbone", "Dataset", "Engine", "HeadstartError", "InputSpec", "Model", "Options", "Plan", "Run", "Rung", "Store",
    "audit", "check_backbone", "decide", "evaluate", "extract", "finetune", "fit", "fit_head", "load", "load_backbone",
    "load_dataset", "race", "save",
]  # fmt: skip


def test_public_names_are_pinned() -> None:
    assert sorted(headstart.__all__) == NAMES
    assert dir(headstart) == NAMES
    assert set(headstart._WHERE) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_each_name_resolves_to_what_its_room_defines(name: str) -> None:
    import_module("headstart.transfer")  # binds every room as an attribute of the package
    found = getattr(headstart, name)
    home = import_module(f"headstart.{headstart._WHERE[name]}")
    assert found is getattr(home, name)
    assert found.__module__ == home.__name__, "it should be taken from where it is written"
    assert inspect.getdoc(found)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'headstart' has no attribute 'Trainer'"):
        headstart.Trainer  # noqa: B018


def test_the_version_is_the_installed_one() -> None:
    from importlib.metadata import version

    assert headstart.__version__ == version("headstart")


def test_every_error_is_one_of_ours_and_drawn_in_the_tree() -> None:
    classes = [kind for _, kind in inspect.getmembers(errors, inspect.isclass)]
    assert len(classes) == 15
    for kind in classes:
        assert issubclass(kind, headstart.HeadstartError)
        assert kind.__name__ in (errors.__doc__ or "")
    assert "pip install 'mlxtend'" in str(errors.MissingExtra("The demo", "demo", "mlxtend"))


def test_options_are_frozen_and_default_to_the_design() -> None:
    options = headstart.Options()
    assert {field.name: getattr(options, field.name) for field in dataclasses.fields(options)} == {
        "backbone": "auto",
        "weights": None,
        "plan": "auto",
        "budget": 600.0,
        "store_limit": 20_000_000_000,
        "test_fraction": 0.2,
        "seed": 0,
        "precision": "auto",
        "engine": "auto",
        "unreadable": "skip",
        "rare": "train",
        "mirror": True,
        "pair": True,
        "path_column": "path",
        "label_column": "label",
        "split_column": "split",
        "group_column": "group",
    }
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.seed = 1  # type: ignore[misc]
