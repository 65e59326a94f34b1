"""Threads that each work on their own episodes, one core each."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


class Workers:
    """`count` threads that run PyTorch on one core each, so that they meet once a call and not once an operator.

    Measured with the few-shot step on two cores that other processes also use: 17 steps a second against 0.3 to 7 with
    two OpenMP threads, which spin and wait for each other in every operator. On idle cores both make 25 to 30 (in
    separate runs; not yet compared side by side).
    With `count` 1 everything runs in the calling thread, with its own OpenMP threads.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._pool = (
            ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) if count > 1 else None
        )

    def map(self, work: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """The results of `work` on every item, in the order of the items.

        Grad mode and autocast are per thread in PyTorch: `work` sets what it needs.
        """
        if self._pool is None:
            return [work(item) for item in items]
        return list(self._pool.map(work, items))
