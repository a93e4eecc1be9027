#!/usr/bin/env bash
# Install a build into a fresh prefix, build this project against it, and run it.
# usage: build.sh BUILD_FOLDER [BUNDLE ADAPTER]
set -euo pipefail

build=$(realpath "$1")
here=$(dirname "$(realpath "$0")")
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

cmake --install "$build" --prefix "$scratch/prefix" >/dev/null
cmake -S "$here" -B "$scratch/build" -DCMAKE_PREFIX_PATH="$scratch/prefix" -DCMAKE_BUILD_TYPE=Debug >/dev/null
cmake --build "$scratch/build" >/dev/null
# of another minor version nothing is promised
if cmake -S "$here" -B "$scratch/newer" -DCMAKE_PREFIX_PATH="$scratch/prefix" \
  -DCMAKE_PROJECT_consumer_INCLUDE="$here/newer.cmake" >/dev/null 2>&1; then
  echo "a version that is not there was found" >&2
  exit 1
fi
"$scratch/build/consumer_c"
if [ $# -eq 3 ] && [ -e "$2/manifest.json" ]; then
  "$scratch/build/consumer" "$2" "$3"
fi
