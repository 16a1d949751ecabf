#!/usr/bin/env bash
# Formats every source with .clang-format; --check only tells which ones differ.
set -euo pipefail
cd "$(dirname "$0")/.."
flags=(-i)
[[ ${1:-} == --check ]] && flags=(--dry-run --Werror)
git ls-files '*.cpp' '*.h' | xargs clang-format "${flags[@]}"
