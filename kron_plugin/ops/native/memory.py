"""Memory for large results, used again from call to call.

The system zeroes new memory page by page, which takes longer than a recurrence computes. A block of
memory that is no longer needed waits here for the next call. The system may take its pages back at
any time (MADV_FREE), so waiting costs no other program its memory.
"""

import ctypes
import mmap
import weakref
from contextlib import suppress
from math import prod
from typing import List, Optional, Sequence

import torch
from torch import Tensor

LEAST_BYTES = 1 << 22  # of an array that is worth it
MOST_BLOCKS = 8  # that wait
SLACK = 1.25  # how much larger than an array its block may be

_waiting: List[mmap.mmap] = []  # the last one was used last


def empty(like: Tensor, shape: Sequence[int], dtype: Optional[torch.dtype] = None) -> Tensor:
    """As `like.new_empty` on the CPU. The storage cannot be resized if it is large."""
    dtype = dtype or like.dtype
    size = prod(shape) * dtype.itemsize
    if size < LEAST_BYTES or not hasattr(mmap, "MADV_FREE"):
        return like.new_empty(shape, dtype=dtype)
    block = _block(size)
    array = (ctypes.c_char * size).from_buffer(block)
    weakref.finalize(array, _give_back, block).atexit = False
    return torch.frombuffer(array, dtype=dtype).view(shape)


def _block(size: int) -> mmap.mmap:
    for block in _waiting[::-1]:
        if size <= len(block) <= SLACK * size:
            with suppress(ValueError):  # another thread has just taken it
                _waiting.remove(block)
                return block
    block = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):  # page faults of 4 KiB each take as long as to zero them
        block.madvise(mmap.MADV_HUGEPAGE)
    return block


def _give_back(block: mmap.mmap) -> None:
    block.madvise(mmap.MADV_FREE)
    _waiting.append(block)
    del _waiting[:-MOST_BLOCKS]
