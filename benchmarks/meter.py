"""A meter of peak bytes: counts the storages that live, below autograd, so that claims can be tested on a CPU."""

from __future__ import annotations

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Meter(TorchDispatchMode):
    """Within it, `peak` is the most bytes alive at once of storages that torch ops made (CPU and CUDA)."""

    def __init__(self):
        super().__init__()
        self.live = self.peak = 0
        self._seen = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        given = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if _stored(t)}
        for tensor in filter(_stored, tree_leaves(result)):
            self._watch(tensor.untyped_storage(), given)
        return result

    def _watch(self, storage, given):
        pointer, size = storage.data_ptr(), storage.nbytes()
        if pointer in given or pointer in self._seen or size == 0:
            return
        self._seen[pointer] = size
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, pointer)

    def _forget(self, pointer):
        self.live -= self._seen.pop(pointer, 0)


def _stored(leaf):
    # efficient zero tangents have no storage
    return isinstance(leaf, torch.Tensor) and not leaf._is_zerotensor()
