"""Fixtures of the tests of kron_plugin.ops."""

import pytest
import torch


@pytest.fixture(autouse=True)
def unwritten_is_nan(monkeypatch):
    """Fill new memory of floating type with NaN, so that a test fails on an unwritten result."""

    def filled(make):
        def call(*args, **kwargs):
            tensor = make(*args, **kwargs)
            return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

        return call

    monkeypatch.setattr(torch, "empty", filled(torch.empty))
    monkeypatch.setattr(torch, "empty_like", filled(torch.empty_like))
    monkeypatch.setattr(torch.Tensor, "new_empty", filled(torch.Tensor.new_empty))
