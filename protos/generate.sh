#!/bin/sh
# Writes the Python stubs of protos/ under the folder named by $1 (default: where they are committed).
# PYTHON: the interpreter that has grpcio-tools and mypy-protobuf.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$here/../clients/python/src}
python=${PYTHON:-python3}
PATH=$(cd "$(dirname "$(command -v "$python")")" && pwd):$PATH  # protoc looks for its mypy plugins there
mkdir -p "$out"
"$python" -m grpc_tools.protoc -I "$here" \
    --python_out="$out" --grpc_python_out="$out" --mypy_out="$out" --mypy_grpc_out="$out" \
    guardwire/v1/moderation.proto
