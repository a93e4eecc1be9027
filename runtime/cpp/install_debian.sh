#!/usr/bin/env bash
# Install with apt what building, testing and checking the C++ runtime needs; nothing if all of it is there.
set -euo pipefail

PACKAGES=(cmake g++ ninja-build nlohmann-json3-dev libgtest-dev libcpp-httplib-dev clang clang-tidy clang-format
  libclang-rt-14-dev)

missing=()
for package in "${PACKAGES[@]}"; do
  state=$(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null || true)
  [ "$state" = installed ] || missing+=("$package")
done
command -v npm >/dev/null || missing+=(npm) # fetch_headers.sh takes ONNX Runtime's headers with it
if [ ${#missing[@]} -eq 0 ]; then
  exit 0
fi
sudo=()
[ "$(id -u)" = 0 ] || sudo=(sudo)
export DEBIAN_FRONTEND=noninteractive
"${sudo[@]}" apt-get update --quiet
"${sudo[@]}" apt-get install --yes --quiet --no-install-recommends "${missing[@]}"
