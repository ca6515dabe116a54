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
    column_groups: NDArray[np.int64] | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Of each row the `count` nearest columns that are in another fold, the nearest first.

    `rows` (R, D) and `columns` (C, D), their folds (R,) and (C,); of columns that share a group (C,) the nearest alone. Returns
    Euclidean distances (R, count), infinite where there are fewer columns, and the places (R, count) of the columns.
    """
    apart = np.full((len(rows), count), np.inf, np.float32)
    places = np.zeros((len(rows), count), np.int64)
    those, group = torch.from_numpy(columns), torch.arange(len(columns))
    if column_groups is not None:
        group = torch.from_numpy(np.unique(column_groups, return_inverse=True)[1].astype(np.int64))
    groups = int(group.max()) + 1 if len(group) else 0
    most = min(count, groups)
    lengths, folds = those.square().sum(1), torch.from_numpy(column_folds)
    for start in range(0, len(rows), _ROWS):
        block = slice(start, start + _ROWS)
        these = torch.from_numpy(rows[block])
        squared = torch.addmm(these.square().sum(1, keepdim=True) + lengths, these, those.T, alpha=-2)
        squared[torch.from_numpy(row_folds[block, None]) == folds] = torch.inf
        if groups < len(columns):
            found, of = _each(squared, group, groups).topk(most, dim=1, largest=False)
            inside = [torch.where(group == each[:, None], squared, torch.inf).argmin(1) for each in of.T]
            where = torch.stack(inside, 1)
        else:
            found, where = squared.topk(most, dim=1, largest=False)
        apart[block, :most], places[block, :most] = found.clamp_min(0).sqrt().numpy(), where.numpy()
    return apart, places


def _each(squared: torch.Tensor, group: torch.Tensor, groups: int) -> torch.Tensor:
    """The least of each group of columns: (R, C) to (R, groups)."""
    least = torch.full((len(squared), groups), torch.inf)
    return least.scatter_reduce(1, group.expand(len(squared), -1), squared, "amin")
