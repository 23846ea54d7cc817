#!/bin/sh
# Parity first, then speeds of several shapes on one accelerator, as JSON: benchmarks/accelerator.sh [--device cuda] [-o DIR] ...
set -eu
here=$(cd "$(dirname "$0")" && pwd)
exec "${PYTHON:-python3}" "$here/accelerator.py" "$@"
