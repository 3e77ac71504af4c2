"""What torch.compile has to know of our Python; plain functions where torch is older than that."""

import torch

_compiler = getattr(torch, "compiler", None)

# Marks a function whose answer is taken when a graph is traced, without looking inside.
constant = getattr(_compiler, "assume_constant_result", lambda function: function)
is_tracing = getattr(_compiler, "is_compiling", lambda: False)
