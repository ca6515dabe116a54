"""Task: what is learnt from labelled samples, and by which metrics.

Single-label classification is the only one so far. The metrics are asked for by name; other rooms use its functions directly, and
would have to ask a `Task` for them before there can be a second one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from headstart.errors import HeadstartError

if TYPE_CHECKING:
    from torch import Tensor


class Metric(Protocol):
    """A number from truth and belief: labels (N,) int64 and probabilities (N, K) to a float."""

    def __call__(self, labels: NDArray[np.int64], probabilities: NDArray[np.floating], /) -> float: ...


class Task(Protocol):
    """One kind of question; `catalog.TASKS` holds those that there are."""

    @property
    def name(self) -> str:
        """The name by which it is chosen, saved and reported."""
        ...

    @property
    def metrics(self) -> Mapping[str, Metric]:
        """Metrics by name, in the order in which they are reported; the first decides."""
        ...

    def loss(self, logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
        """Differentiable mean loss, a scalar, of logits (N, K) against targets (N,) int64."""
        ...

    def probabilities(self, logits: NDArray[np.floating], temperature: float = 1.0) -> NDArray[np.float64]:
        """Logits (N, K) to probabilities (N, K); rows sum to one."""
        ...

    def fit_temperature(self, logits: NDArray[np.floating], labels: NDArray[np.int64]) -> float:
        """The divisor of logits (N, K) under which they suit the labels (N,) best."""
        ...


def check_task(task: Task) -> None:
    """Hold a task against the contract on made-up data; the tests run this over every entry of the table.

    Raises:
        HeadstartError: with the first promise that does not hold.
    """
    import torch

    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 60)
    logits = rng.normal(size=(60, 4)) + 2 * np.eye(4)[labels]
    belief = task.probabilities(logits)
    if belief.shape != (60, 4) or belief.min() < 0 or not np.allclose(belief.sum(1), 1):
        raise HeadstartError(f"Task '{task.name}': probabilities must be (N, K), ≥ 0 and sum to one.")
    if (belief.argmax(1) != task.probabilities(logits, 3.0).argmax(1)).any():
        raise HeadstartError(f"Task '{task.name}': the temperature must not change which class is first.")
    for name, metric in task.metrics.items():
        if not np.isfinite(metric(labels, belief)):
            raise HeadstartError(f"Task '{task.name}': metric '{name}' is not finite on ordinary input.")
    given = torch.tensor(logits, requires_grad=True)
    task.loss(given, torch.from_numpy(labels)).backward()  # type: ignore[no-untyped-call]
    if given.grad is None or not bool(torch.isfinite(given.grad).all()):
        raise HeadstartError(f"Task '{task.name}': the loss gives no finite gradient for the logits.")
    # Logits that are three times too sure must be divided by three times as much.
    once, thrice = task.fit_temperature(logits, labels), task.fit_temperature(3 * logits, labels)
    if not np.isclose(thrice, 3 * once, rtol=0.02):
        raise HeadstartError(
            f"Task '{task.name}': fit_temperature gave {once:.3f} and, for logits times 3, {thrice:.3f}; "
            f"expected {3 * once:.3f}."
        )
