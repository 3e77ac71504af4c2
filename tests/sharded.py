"""One of two processes that share a model: `sharded RANK MEETING`.

After two steps its parameters equal those of one process on both halves of the batch, for every way
to shard them.
"""

import contextlib
import sys
from copy import deepcopy

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy

from kron_plugin.modules import KRU, KRUGRU


class Model(nn.Module):
    """Maps a sequence to one number. Its first parameter shifts the others in a flat buffer.

    Its forward also returns the penalty if `asked` is "inside".
    """

    def __init__(self, cell, unitary, asked):
        super().__init__()
        self.skew = nn.Parameter(torch.ones(1))
        self.cell = cell(3, 6, unitary=unitary)
        self.readout = nn.Linear(self.cell.output_size, 1)
        self.asked = asked

    def forward(self, x):
        _, state = self.cell(x)
        h = state[0] if isinstance(state, tuple) else state
        y = self.readout(h[-1]) * self.skew
        return y, self.cell.unitary_penalty() if self.asked == "inside" else 0


def train(model, x, penalty):
    optimiser = torch.optim.SGD(model.parameters(), 0.05)
    for _ in range(2):
        optimiser.zero_grad()
        y, inside = model(x)
        (y.square().mean() + inside + (penalty() if penalty else 0)).backward()
        optimiser.step()


def fsdp(model, *kinds, **options):
    policy = ModuleWrapPolicy(set(kinds)) if kinds else None
    options = {"device_id": torch.device("cpu"), "auto_wrap_policy": policy, **options}
    return FullyShardedDataParallel(model, **options)


def fsdp_factors(model):
    return fsdp(model, type(model.cell.layers[0].factors), use_orig_params=True)


def fsdp_layers(model):
    return fsdp(model, type(model.cell.layers[0]), use_orig_params=True)


def shard(model, mesh, each):
    for layer in model.cell.layers if each else ():
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def whole(model):
    """All parameters one after the other."""
    if not isinstance(model, FullyShardedDataParallel):
        tensors = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in model.parameters()]
        return torch.cat([tensor.detach().flatten() for tensor in tensors])
    with FullyShardedDataParallel.summon_full_params(model):
        return torch.cat([p.detach().flatten() for p in model.parameters()])


def check_training(cell, unitary, rank, mesh):
    ways = {  # and where to ask for the penalty
        "data parallel": (nn.parallel.DistributedDataParallel, "anywhere"),
        "fsdp": (fsdp, "after forward"),
        "fsdp, own parameters": (lambda model: fsdp(model, use_orig_params=True), "inside"),
        "fsdp, factors apart": (fsdp_factors, "anywhere"),
        "fsdp, layers apart": (fsdp_layers, "nowhere"),
        "fully_shard": (lambda model: shard(model, mesh, False), "anywhere"),
        "fully_shard, each layer": (lambda model: shard(model, mesh, True), "anywhere"),
    }
    for way, (wrap, asked) in ways.items():
        torch.manual_seed(0)
        model, x = Model(cell, unitary, asked), torch.randn(4, 4, 3)
        expected = deepcopy(model)
        outside = asked in ("anywhere", "after forward")
        train(expected, x, expected.cell.unitary_penalty if outside else None)
        wrapped = wrap(model)
        train(wrapped, x[:, 2 * rank :][:, :2], model.cell.unitary_penalty if outside else None)
        have, want = whole(wrapped), whole(expected)
        torch.testing.assert_close(have, want, msg=lambda text, way=way: f"{way}: {text}")
        if asked == "anywhere":
            torch.testing.assert_close(
                model.cell.unitary_deviation(), expected.cell.unitary_deviation()
            )
        else:
            with pytest.raises(RuntimeError, match="factors: FSDP keeps them in shards"):
                model.cell.unitary_deviation()


def check_start(cell, unitary, mesh):
    """The parameters start on the meta device."""
    for wrap in (fsdp, lambda layer: fully_shard(layer, mesh=mesh)):
        torch.manual_seed(0)
        layer = cell(3, 6, unitary=unitary, device="meta")
        wrapped = wrap(layer)
        if wrapped is layer:
            layer.to_empty(device="cpu")
            layer.reset_parameters()
        assert wrapped(torch.randn(4, 2, 3))[0].isfinite().all()
        with contextlib.ExitStack() as stack:
            if wrapped is not layer:
                stack.enter_context(FullyShardedDataParallel.summon_full_params(wrapped))
            assert layer.unitary_deviation() < 1e-5


def main():
    rank, meeting = int(sys.argv[1]), sys.argv[2]
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    for cell, unitary in ((KRU, "soft"), (KRU, "hard"), (KRUGRU, "soft")):
        check_training(cell, unitary, rank, mesh)
        check_start(cell, unitary, mesh)
    dist.destroy_process_group()
