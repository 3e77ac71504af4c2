"""Memory for large results of the CPU kernels, used again from call to call."""

import pytest
import torch

from kron_plugin.ops.native import memory

LARGE = (1 << 10, 1 << 12)  # 16 MiB of float32


@pytest.fixture(autouse=True)
def nothing_waits():
    memory._waiting.clear()


def test_memory_is_used_again_when_its_last_tensor_is_gone():
    first = memory.empty(torch.zeros(1), LARGE)
    address, view = first.data_ptr(), first[3:]
    del first
    assert memory.empty(torch.zeros(1), LARGE).data_ptr() != address, "a view is still there"
    del view
    assert memory.empty(torch.zeros(1), LARGE).data_ptr() == address


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.bfloat16])
def test_it_is_an_ordinary_tensor(dtype):
    made = memory.empty(torch.zeros(1), LARGE, dtype)
    assert (made.shape, made.dtype, made.is_contiguous()) == (LARGE, dtype, True)
    made.fill_(2)
    assert made.clone().sum().real == 2 * made.numel()


def test_small_arrays_are_torchs():
    for shape in ((0,), (3, 4)):
        made = memory.empty(torch.zeros(1, dtype=torch.float64), shape)
        assert (made.shape, made.dtype) == (shape, torch.float64)
    assert not memory._waiting


def test_few_blocks_wait_and_none_is_much_too_large():
    tensors = [memory.empty(torch.zeros(1), LARGE) for _ in range(memory.MOST_BLOCKS + 3)]
    del tensors
    assert len(memory._waiting) == memory.MOST_BLOCKS
    memory.empty(torch.zeros(1), (LARGE[0] // 2, LARGE[1]))
    assert len(memory._waiting) == memory.MOST_BLOCKS, "half as large: a block of its own"


def test_a_block_outlives_what_waits():
    """A tensor keeps its memory when the list of blocks is dropped."""
    made = memory.empty(torch.zeros(1), LARGE).fill_(1)
    others = [memory.empty(torch.zeros(1), LARGE) for _ in range(memory.MOST_BLOCKS + 1)]
    del others
    memory._waiting.clear()
    assert made.sum() == made.numel()
