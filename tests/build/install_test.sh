#!/usr/bin/env bash
# Installs the engine and builds a C program against it, once with find_package and once with pkg-config's flags.
# usage: install_test.sh SOURCE_DIR BUILD_DIR (with needle_shared built)
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cmake --install "$2" --component engine --prefix "$work/prefix" >/dev/null
mkdir "$work/program"
cp "$1/apps/examples/generate_c.c" "$work/program"
cat >"$work/program/CMakeLists.txt" <<'EOF'
cmake_minimum_required(VERSION 3.25)
project(program LANGUAGES C)
find_package(needle 0.1 REQUIRED)
add_executable(program generate_c.c)
target_link_libraries(program PRIVATE needle::shared)
EOF
cmake -S "$work/program" -B "$work/build" -DCMAKE_PREFIX_PATH="$work/prefix" --log-level=WARNING >/dev/null
cmake --build "$work/build" >/dev/null
code=0
"$work/build/program" "$work/absent.needle" x 2>"$work/err" || code=$?
if [ "$code" != 1 ] || ! grep -q absent.needle "$work/err"; then
  echo "the installed library does not answer: exit code $code, $(cat "$work/err")" >&2
  exit 1
fi
visible=$(nm -D --defined-only "$(find "$work/prefix" -name libneedle.so)" |
  awk '$2 == "T" && $3 !~ /^needle_/ {print $3}')
if [ -n "$visible" ]; then
  echo "libneedle.so shows more than the ABI: $visible" >&2
  exit 1
fi
export PKG_CONFIG_PATH=$(dirname "$(find "$work/prefix" -name needle.pc)")
# shellcheck disable=SC2046
cc "$work/program/generate_c.c" -o "$work/by_pkg_config" \
  $(pkg-config --define-variable=prefix="$work/prefix" --cflags --libs needle)
test -x "$work/by_pkg_config"
