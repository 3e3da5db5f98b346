#!/usr/bin/env bash
# Serve what train_local.sh made, as SageMaker would: serve_local.sh IMAGE [DOCKER OPTION...]
# Listens on 127.0.0.1, PORT (default: 8080), until Ctrl-C.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
image=${1:?usage: serve_local.sh IMAGE [DOCKER OPTION...]}

[ -n "$(ls -A "$here/test_dir/model" 2>/dev/null)" ] ||
  { echo "serve_local.sh: no model in $here/test_dir/model; run train_local.sh $image first" >&2; exit 1; }
exec docker run --rm --user "$(id -u):$(id -g)" -p "127.0.0.1:${PORT:-8080}:8080" \
  -v "$here/test_dir/model:/opt/ml/model:ro" "${@:2}" "$image" serve
