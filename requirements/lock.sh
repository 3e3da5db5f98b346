#!/usr/bin/env bash
# Writes the lock files from the bounds in pyproject.toml: lock.sh [UV OPTION...], such as --upgrade. Versions that fit are kept.
# One version of each package for Python 3.11 to 3.13, so that what one of them has trained the others can serve.
set -euo pipefail
cd "$(dirname "$0")/.."
lock() {
  .venv/bin/uv pip compile --quiet --universal --python-version 3.11 --fork-strategy fewest --generate-hashes --no-emit-index-url \
    --custom-compile-command 'make lock' -c requirements/constraints.in "$@"
}
lock "$@" --group bootstrap -o requirements/bootstrap.txt
lock "$@" pyproject.toml -o requirements/serve.txt
lock "$@" pyproject.toml -c requirements/serve.txt --no-annotate --group image -o requirements/image.txt
lock "$@" pyproject.toml -c requirements/serve.txt --no-annotate --group mms -o requirements/mms.txt
lock "$@" pyproject.toml -c requirements/serve.txt --no-annotate --group energy -c requirements/bootstrap.txt -o requirements/energy.txt
lock "$@" pyproject.toml -c requirements/serve.txt --no-annotate --group dev -c requirements/bootstrap.txt -c requirements/mms.txt \
  -c requirements/energy.txt -o requirements/dev.txt
lock "$@" requirements/bench.in -c requirements/energy.txt -o requirements/bench.txt
