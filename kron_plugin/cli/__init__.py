"""The command `kron-eval`."""
