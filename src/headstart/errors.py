"""Every exception that Headstart raises on purpose.

    HeadstartError                 catch this to catch them all; its text is meant for the person
    ├── DataError                  the labelled data cannot be used as given
    │   ├── UnreadableImage        one picture cannot be decoded (named, with the reason)
    │   └── TooLittleData          too few classes or images for what was asked
    ├── BackboneError              a backbone cannot be had or used
    │   ├── UnknownBackbone        no such name, or its weights are not on this machine
    │   ├── WeightsError           a weights file has the wrong digest, names or shapes
    │   └── PartitionError         the network cannot be cut into stages that equal the original
    ├── StoreError                 the feature store cannot be read or written
    ├── DamagedStore               what the feature store holds is not what was written
    ├── OptionError                an option has a value that it cannot have
    ├── PlanError                  a plan file is malformed or does not fit its backbone
    ├── BundleError                a saved model is damaged, tampered with or of another format version
    ├── OutputError                the run folder cannot be written
    └── MissingExtra               an optional dependency is needed; the text holds the pip line

A message says what was got, what was expected, and what to do or type next.
"""


class HeadstartError(Exception):
    """Base of all errors raised on purpose; `str(error)` is fit to be shown to a person."""


class DataError(HeadstartError):
    """The labelled data cannot be used as given."""


class UnreadableImage(DataError):
    """One picture cannot be decoded."""


class TooLittleData(DataError):
    """Too few classes or images for what was asked."""


class BackboneError(HeadstartError):
    """A backbone cannot be had or used."""


class UnknownBackbone(BackboneError):
    """No backbone of that name, or its weights are not on this machine."""


class WeightsError(BackboneError):
    """A weights file has the wrong digest, names or shapes."""


class PartitionError(BackboneError):
    """The network cannot be cut into stages that equal the original."""


class OptionError(HeadstartError):
    """An option has a value that it cannot have."""


class StoreError(HeadstartError):
    """The feature store cannot be read or written."""


class DamagedStore(HeadstartError):
    """What the feature store holds is not what was written."""


class PlanError(HeadstartError):
    """A plan file is malformed or does not fit its backbone."""


class BundleError(HeadstartError):
    """A saved model is damaged, tampered with or of another format version."""


class OutputError(HeadstartError):
    """The run folder cannot be written."""


class MissingExtra(HeadstartError):
    """An optional dependency is needed."""

    def __init__(self, what: str, extra: str, package: str) -> None:
        super().__init__(
            f"{what} needs the package '{package}', which is not installed. Install it with:  pip install '{package}'"
        )
