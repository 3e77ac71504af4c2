#!/usr/bin/env bash
# Run tests with every kernel built by g++ with AddressSanitizer and UndefinedBehaviorSanitizer.
#
#   bash tests/sanitize.sh PYTHON ARGUMENT …      such as: .venv/bin/python -m pytest tests/ops
#
# A read or write beyond a tensor, or an undefined operation, ends the process with a report.
set -euo pipefail

# A null pointer ends the process in any case, and its check takes long.
sanitizers="-fsanitize=address,undefined -fno-sanitize=null -fno-sanitize-recover=all"
# A wrapper, because later options win: -O3 would take minutes and hide reads.
export CXX="sh -c 'exec g++ \"\$@\" -O0 -g0 $sanitizers' g++"
export KRON_CACHE_DIR=${KRON_CACHE_DIR:-${TMPDIR:-/tmp}/kron-sanitized-$UID}
export ASAN_OPTIONS=detect_leaks=0  # the interpreter's own
export LD_PRELOAD="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libubsan.so)"
exec "$@"
