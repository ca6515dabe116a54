"""Pictures decoded by other processes while this one is busy with something else: importing torch takes seconds. No torch."""

from __future__ import annotations

import mmap
import os
import sys
from contextlib import suppress
from types import TracebackType
from typing import final

import numpy as np
from numpy.typing import NDArray

from headstart import runtime
from headstart.data.dataset import Dataset
from headstart.data.images import Transform, load_view

ROOM = 256 * 2**20  # bytes of decoded pictures that are kept at most


@final
class Ahead:
    """Clean views of the first pictures that will be asked for, in memory that is shared with the processes which decode them.

    A picture that is not there, or could not be decoded, is simply decoded later, by whoever needs it.
    """

    def __init__(self, dataset: Dataset, order: NDArray[np.int64], transform: Transform, workers: int) -> None:
        height, width = transform.size
        self.transform = transform
        self._dataset, self._order = dataset, order
        self._place = {int(index): place for place, index in enumerate(order)}
        self._pixels = np.frombuffer(mmap.mmap(-1, max(1, len(order) * height * width * 3)), np.uint8)
        self._pixels = self._pixels[: len(order) * height * width * 3].reshape(len(order), height, width, 3)
        self._done = np.frombuffer(mmap.mmap(-1, len(order) + 1), np.uint8)  # the last one says: enough
        parent = os.getpid()
        self._workers = []
        for worker in range(workers):
            process = os.fork()
            if process == 0:
                try:
                    self._decode(worker, workers, parent)
                finally:
                    os._exit(0)  # neither what the parent has to clean up nor what it has to say is ours
            self._workers.append(process)

    @classmethod
    def of(cls, dataset: Dataset, transform: Transform | None) -> Ahead:
        """Begin with the pictures that are not sealed, where that helps: torch is still to be imported, there is a core to spare,
        and processes can be forked. The order is that of the extraction."""
        spare = runtime.cpu_count() - 1
        if transform is None or spare < 1 or "torch" in sys.modules or sys.platform != "linux":
            return cls(dataset, np.empty(0, np.int64), transform or Transform((1, 1)), 0)
        unsealed = sorted(np.flatnonzero(dataset.split != "test").tolist(), key=lambda i: dataset.digests[i])
        count = ROOM // (transform.size[0] * transform.size[1] * 3)
        return cls(dataset, np.array(unsealed[:count], np.int64), transform, spare)

    def _decode(self, worker: int, workers: int, parent: int) -> None:
        for place in range(worker, len(self._order), workers):
            if self._done[-1] or os.getppid() != parent:
                return
            with suppress(Exception):  # whoever needs the picture will meet the error, and say it
                self._pixels[place] = load_view(self._dataset.images, int(self._order[place]), self.transform)
                self._done[place] = 1

    def enough(self) -> None:
        """Decode no more; what is there can be taken from now on."""
        self._done[-1] = 1
        for process in self._workers:
            with suppress(ChildProcessError):
                os.waitpid(process, 0)
        self._workers = []

    def take(self, index: int, transform: Transform) -> NDArray[np.uint8] | None:
        """The clean view (H, W, 3) of a picture, where it was decoded for this transform; only after `enough`."""
        place = self._place.get(index)
        if place is None or self._workers or not self._done[place] or transform.key(0, 0) != self.transform.key(0, 0):
            return None
        pixels: NDArray[np.uint8] = self._pixels[place]
        return pixels

    def __enter__(self) -> Ahead:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.drop()

    def drop(self) -> None:
        """Decode no more, and free the memory."""
        self.enough()
        self._place = {}
        self._pixels = self._pixels[:0].copy()
