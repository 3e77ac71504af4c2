export KRON_VENV := $(or $(KRON_VENV),.venv)

.PHONY: setup test verify lint installed-test fresh-test sanitize bench gpu-test gpu-bench

setup:
	bash recipes/setup.sh test

test: setup lint
	"$(KRON_VENV)/bin/python" -m pytest -n auto --maxprocesses 4 --dist loadgroup

lint: setup
	"$(KRON_VENV)/bin/python" -m ruff check .
	"$(KRON_VENV)/bin/python" -m ruff format --check .
	"$(KRON_VENV)/bin/python" -m mypy

# The whole suite against a wheel made from the source distribution; some minutes.
installed-test: setup
	folder=$$(mktemp -d) && trap 'rm -r "$$folder"' EXIT && \
	bash tests/installed.sh "$$folder/kron" "$$(realpath -s "$(KRON_VENV)")/bin/python" -n auto --maxprocesses 4 \
		--dist loadgroup

# Every test of the kernels, with AddressSanitizer and UndefinedBehaviorSanitizer; some minutes.
# ThreadSanitizer does not go with them, and has a test of its own; nor do other compilers.
sanitize: setup
	bash tests/sanitize.sh "$(KRON_VENV)/bin/python" -m pytest -s tests/ops -k "not sanitizer" \
		--ignore tests/ops/test_cuda_kernels.py --ignore tests/ops/test_compilers.py

# Every model in recipes/models is scored again, and compared with its record; needs the data.
verify: setup
	KRON_VERIFY=1 "$(KRON_VENV)/bin/python" -m pytest tests/test_models.py

bench:
	bash recipes/setup.sh bench
	"$(KRON_VENV)/bin/python" benchmarks/recurrence.py

gpu-test: setup
	"$(KRON_VENV)/bin/python" benchmarks/gpu.py test

gpu-bench:
	bash recipes/setup.sh test
	bash recipes/setup.sh bench
	"$(KRON_VENV)/bin/python" benchmarks/gpu.py bench

# Both commands of the README in systems made from nothing; needs root, debootstrap and the network,
# and some twenty minutes. KRON_FRESH names the folder for them.
fresh-test:
	bash tests/fresh.sh "$(or $(KRON_FRESH),/var/tmp/kron-fresh)"
