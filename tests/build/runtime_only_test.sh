#!/usr/bin/env bash
# Configures and builds everything LibTorch-free where no LibTorch can be found, and checks that needle-run
# links nothing but the C and C++ standard libraries.
# usage: runtime_only_test.sh SOURCE_DIR BUILD_DIR
set -euo pipefail
cmake -S "$1" -B "$2" -G Ninja -DCMAKE_BUILD_TYPE=Release -DNEEDLE_BUILD_TRAINING=OFF -DNEEDLE_BUILD_TESTS=OFF \
  -DNEEDLE_PYTHON_ENV=/nonexistent --log-level=WARNING
cmake --build "$2" --parallel 2 | tail -3
test -x "$2/bin/needle-run"
test ! -e "$2/bin/needle-train"
if readelf -d "$2/bin/needle-run" | grep NEEDED | grep -vE '\[(libstdc\+\+|libgcc_s|libm|libc|libpthread|ld-linux[-a-z0-9_]*)\.so'; then
  echo "needle-run links more than the standard libraries" >&2
  exit 1
fi
"$2/bin/needle-run" --help >/dev/null
