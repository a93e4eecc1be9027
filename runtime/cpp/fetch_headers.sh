#!/usr/bin/env bash
# Take ONNX Runtime's C and C++ headers (MIT, Microsoft) from a package of npm into FOLDER.
# Headers older than the library are fine: its interface only grows.
set -euo pipefail

PACKAGE=com.github.asus4.onnxruntime@0.4.9
INSIDE='package/Plugins/iOS~/onnxruntime.xcframework/ios-arm64/onnxruntime.framework/Headers'

if [ $# -ne 1 ]; then
  echo "usage: $0 FOLDER" >&2
  exit 2
fi
if [ -f "$1/onnxruntime_c_api.h" ]; then
  exit 0
fi
mkdir -p "$(dirname "$1")"
scratch=$(mktemp -d "$(dirname "$1")/.headers.XXXXXX")
trap 'rm -rf "$scratch"' EXIT
(cd "$scratch" && npm pack --silent "$PACKAGE" >archive.name && tar -xzf "$(tail -n 1 archive.name)" "$INSIDE")
rm -rf "$1"
mv "$scratch/$INSIDE" "$1"
