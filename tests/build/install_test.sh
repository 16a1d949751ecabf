#!/usr/bin/env bash
# Installs the engine and builds programs against it: C with find_package, shared and static, and with pkg-config's flags; C++
# with the static library. What the static library adds to a program stays below 1 MB.
# usage: install_test.sh SOURCE_DIR BUILD_DIR (with needle_shared and needle_static built)
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cmake --install "$2" --component engine --prefix "$work/prefix" >/dev/null
mkdir "$work/program"
cp "$1/apps/examples/generate_c.c" "$1/apps/examples/typed_tools.cpp" "$work/program"
echo 'int main(void) { return 0; }' >"$work/program/nothing.c"
cat >"$work/program/CMakeLists.txt" <<'EOF'
cmake_minimum_required(VERSION 3.25)
project(program LANGUAGES C CXX)
find_package(needle 0.1 REQUIRED)
add_executable(program generate_c.c)
target_link_libraries(program PRIVATE needle::shared)
add_executable(program_static generate_c.c)
target_link_libraries(program_static PRIVATE needle::static)
target_link_options(program_static PRIVATE -Wl,--gc-sections -s)
add_executable(nothing nothing.c)
target_link_options(nothing PRIVATE -Wl,--gc-sections -s)
add_executable(typed_tools typed_tools.cpp)
target_link_libraries(typed_tools PRIVATE needle::static)
EOF
cmake -S "$work/program" -B "$work/build" -DCMAKE_PREFIX_PATH="$work/prefix" --log-level=WARNING >/dev/null
cmake --build "$work/build" >/dev/null
for program in program program_static; do
  code=0
  "$work/build/$program" "$work/absent.needle" x 2>"$work/err" || code=$?
  if [ "$code" != 1 ] || ! grep -q absent.needle "$work/err"; then
    echo "$program: the installed library does not answer: exit code $code, $(cat "$work/err")" >&2
    exit 1
  fi
done
code=0
"$work/build/typed_tools" 2>"$work/err" || code=$?
if [ "$code" != 2 ] || ! grep -q usage "$work/err"; then
  echo "typed_tools does not run: exit code $code, $(cat "$work/err")" >&2
  exit 1
fi
added=$(($(stat -c %s "$work/build/program_static") - $(stat -c %s "$work/build/nothing")))
echo "the static library adds $added bytes to a C program"
if grep -qE '^CMAKE_BUILD_TYPE:STRING=(Release|MinSizeRel)$' "$2/CMakeCache.txt" && grep -q '^NEEDLE_SANITIZE:STRING=$' "$2/CMakeCache.txt" &&
  [ "$added" -ge 1000000 ]; then
  echo "expected less than 1000000" >&2
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
