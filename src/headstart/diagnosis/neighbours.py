"""The nearest pictures in some space, of those in another fold: what leaks and shortcuts are looked for with."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

_ROWS = 1024  # rows compared at a time


def nearest(
    rows: NDArray[np.float32],
    columns: NDArray[np.float32],
    count: int,
    row_folds: NDArray[np.int64],
    column_folds: NDArray[np.int64],
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Of each row the `count` nearest columns that are in another fold, the nearest first.

    `rows` (R, D) and `columns` (C, D), their folds (R,) and (C,). Returns Euclidean distances (R, count), infinite where there are
    fewer columns, and the places (R, count) of the columns.
    """
    apart = np.full((len(rows), count), np.inf, np.float32)
    places = np.zeros((len(rows), count), np.int64)
    most, those = min(count, len(columns)), torch.from_numpy(columns)
    lengths, folds = those.square().sum(1), torch.from_numpy(column_folds)
    for start in range(0, len(rows), _ROWS):
        block = slice(start, start + _ROWS)
        these = torch.from_numpy(rows[block])
        squared = torch.addmm(these.square().sum(1, keepdim=True) + lengths, these, those.T, alpha=-2)
        squared[torch.from_numpy(row_folds[block, None]) == folds] = torch.inf
        found, where = squared.topk(most, dim=1, largest=False)
        apart[block, :most], places[block, :most] = found.clamp_min(0).sqrt().numpy(), where.numpy()
    return apart, places
