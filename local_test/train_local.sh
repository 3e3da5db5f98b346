#!/usr/bin/env bash
# Train in a container as SageMaker would: train_local.sh IMAGE [DOCKER OPTION...]
# Reads test_dir/input, writes test_dir/model and test_dir/output. CODE: the folder with training.py (default: examples/iris).
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
image=${1:?usage: train_local.sh IMAGE [DOCKER OPTION...]}
code=$(cd "${CODE:-$here/../examples/iris}" && pwd)

rm -rf "$here"/test_dir/{model,output}
mkdir -p "$here"/test_dir/{model,output}
# As the caller, who then owns the model.
exec docker run --rm --user "$(id -u):$(id -g)" \
  -v "$here/test_dir/input:/opt/ml/input:ro" -v "$here/test_dir/model:/opt/ml/model" -v "$here/test_dir/output:/opt/ml/output" \
  -v "$code:/opt/ml/code:ro" "${@:2}" "$image" train
