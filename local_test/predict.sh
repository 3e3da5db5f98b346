#!/usr/bin/env bash
# Ask the model that serve_local.sh serves: predict.sh PAYLOAD [CONTENT_TYPE]
# PAYLOAD is a file, CONTENT_TYPE text/csv unless given, PORT 8080 unless set. An answer other than 2xx is printed, and the exit code is 1.
set -euo pipefail
payload=${1:?usage: predict.sh PAYLOAD [CONTENT_TYPE]}
[ -r "$payload" ] || { echo "predict.sh: cannot read $payload" >&2; exit 1; }

curl --silent --show-error --fail-with-body --write-out '\n' --data-binary "@$payload" -H "Content-Type: ${2:-text/csv}" \
  "http://127.0.0.1:${PORT:-8080}/invocations" || exit 1
