"""The cells: each file defines one, and the function that runs it over a sequence."""
