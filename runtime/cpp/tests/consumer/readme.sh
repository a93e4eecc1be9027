#!/usr/bin/env bash
# Compile what runtime/cpp/README.md shows against an installed prefix, and run its program.
# usage: readme.sh PREFIX BUNDLE
set -euo pipefail

prefix=$(realpath "$1")
readme=$(dirname "$(realpath "$0")")/../../README.md
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# the code block of a language that comes as the NUMBERth
block() {
  awk -v fence="^\`\`\`$1\$" -v wanted="$2" \
    '/^```$/ {inside = 0} inside {print} $0 ~ fence {inside = ++count == wanted}' "$readme"
}

block cpp 1 >"$scratch/program.cpp"
{
  printf '#include <adexport/adexport.hpp>\n#include <iostream>\nvoid generate(adexport::Engine& engine) {\n'
  block cpp 2
  printf '(void)texts;\n}\n'
} >"$scratch/generation.cpp"
{
  printf '#include <adexport/adexport.h>\n#include <stdio.h>\nint main(void) {\n'
  block c 1
  printf 'return 0;\n}\n'
} >"$scratch/program.c"

library=$(find "$prefix" -name libadexport.so | head -n 1)
flags=(-Wall -Wextra -Werror -I"$prefix/include")
"${CXX:-g++}" -std=c++17 "${flags[@]}" -c "$scratch/generation.cpp" -o "$scratch/generation.o"
"${CC:-gcc}" -std=c99 "${flags[@]}" -c "$scratch/program.c" -o "$scratch/c.o"
"${CXX:-g++}" -std=c++17 "${flags[@]}" "$scratch/program.cpp" "$library" -Wl,-rpath,"$(dirname "$library")" \
  -o "$scratch/program"
"$scratch/program" "$2"
