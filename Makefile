VENV ?= $(if $(KRON_VENV),$(KRON_VENV),.venv)

.PHONY: setup test lint installed-test sanitize bench gpu-test gpu-bench

setup:
	bash recipes/setup.sh test

test: setup lint
	"$(VENV)/bin/python" -m pytest -n auto --maxprocesses 4

lint: setup
	"$(VENV)/bin/ruff" check .
	"$(VENV)/bin/ruff" format --check .

# The whole suite against a wheel made from the source distribution; some minutes.
installed-test: setup
	folder=$$(mktemp -d) && trap 'rm -r "$$folder"' EXIT && \
	bash tests/installed.sh "$$folder/kron" "$$(realpath -s "$(VENV)")/bin/python" -n auto --maxprocesses 4

# Every test of the kernels, with AddressSanitizer and UndefinedBehaviorSanitizer; some minutes.
# ThreadSanitizer does not go with them, and has a test of its own.
sanitize: setup
	bash tests/sanitize.sh "$(VENV)/bin/python" -m pytest -s tests/ops -k "not sanitizer"

bench:
	bash recipes/setup.sh bench
	"$(VENV)/bin/python" benchmarks/recurrence.py

gpu-test: setup
	"$(VENV)/bin/python" benchmarks/gpu.py test

gpu-bench:
	bash recipes/setup.sh test
	bash recipes/setup.sh bench
	"$(VENV)/bin/python" benchmarks/gpu.py bench
