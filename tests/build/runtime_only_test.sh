#!/usr/bin/env bash
# Configures and builds everything LibTorch-free where no LibTorch can be found, and checks that needle-run links none.
# usage: runtime_only_test.sh SOURCE_DIR BUILD_DIR
set -euo pipefail
cmake -S "$1" -B "$2" -G Ninja -DCMAKE_BUILD_TYPE=Release -DNEEDLE_BUILD_TRAINING=OFF -DNEEDLE_BUILD_TESTS=OFF \
  -DNEEDLE_PYTHON_ENV=/nonexistent --log-level=WARNING
cmake --build "$2" --parallel 2 | tail -3
test -x "$2/bin/needle-run"
test ! -e "$2/bin/needle-train"
if ldd "$2/bin/needle-run" | grep -E 'torch|c10'; then
  echo "needle-run links LibTorch" >&2
  exit 1
fi
"$2/bin/needle-run" --help >/dev/null
