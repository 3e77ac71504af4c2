"""The commands `kron-eval` and `kron-data`."""
