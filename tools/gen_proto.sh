#!/usr/bin/env bash
# Generates the protobuf code into sdk/ (or into the folder given as first argument).
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-sdk}
files=(protos/tidegate/common/v1/common.proto protos/tidegate/gateway/v1/gateway.proto protos/tidegate/node/v1/node.proto)
PATH="$PWD/.venv-proto/bin:$PATH" .venv-proto/bin/python -W ignore -m grpc_tools.protoc -Iprotos \
    --python_out="$out" --mypy_out="quiet:$out" --grpc_python_out="$out" --mypy_grpc_out="quiet:$out" "${files[@]}"
for package in common gateway node; do
    printf '"""Generated protobuf code; see protos/."""\n' > "$out/tidegate/$package/__init__.py"
    printf '"""Generated protobuf code; see protos/."""\n' > "$out/tidegate/$package/v1/__init__.py"
done
rm -f "$out"/tidegate/common/v1/common_pb2_grpc.py*
