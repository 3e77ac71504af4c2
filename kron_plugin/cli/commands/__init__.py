"""A module for each command of `kron-eval` and `kron-data`; `program.run` says what it contains."""
