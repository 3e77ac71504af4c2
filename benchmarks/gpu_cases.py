"""Every kernel once on small problems, for compute-sanitizer to watch (gpu.py calls this)."""

import torch

from kron_plugin.ops import kron_matmul, kron_rnn

SHAPES = [[2] * 2, [2] * 7, [2] * 9, [3, 5], [2, 2, 3, 16], [2] * 14]


def main() -> None:
    torch.manual_seed(0)
    for sizes in SHAPES:
        for dtype in (torch.complex64, torch.float32):
            factors = [torch.randn(p, p, dtype=dtype, device="cuda") / p for p in sizes]
            factors = [w.requires_grad_() for w in factors]
            size = torch.tensor(sizes).prod().item()
            width = size * (2 if dtype.is_complex else 1)
            x = torch.randn(3, 5, width, device="cuda", requires_grad=True)
            bias, h0 = torch.zeros(size, device="cuda"), torch.ones(5, width, device="cuda")
            lengths = torch.tensor([3, 1, 2, 3, 1], device="cuda")
            states, _ = kron_rnn(x, factors, bias, h0, lengths, backend="cuda")
            product = kron_matmul(torch.randn(7, size, device="cuda"), factors, backend="cuda")
            (states.square().sum() + product.abs().square().sum()).backward()
            assert x.grad.isfinite().all()
            print(sizes, dtype)
    torch.cuda.synchronize()


if __name__ == "__main__":
    main()
