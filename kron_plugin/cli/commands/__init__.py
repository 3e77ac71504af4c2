"""A module for each command of `kron-eval` and `kron-data`; `program.run` tells what is in one."""
