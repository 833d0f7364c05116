#!/usr/bin/env bash
# Compares the .proto files with those of the last release (the newest tag): what a client of that one could not read,
# or would take for something else, is an error. Without a release there is nothing to compare with.
#
#   breaking.sh [BUF]  the program buf, default buf
set -euo pipefail
buf=$(command -v "${1:-buf}")
buf=$(realpath "$buf")
cd "$(dirname "$0")/.."
tag=$(git describe --tags --abbrev=0 2>/dev/null || true)
[ -n "$tag" ] || exit 0
before=$(mktemp -d)
trap 'rm -rf "$before"' EXIT
git archive "$tag" proto | tar -x -C "$before"
"$buf" breaking proto --against "$before/proto"
