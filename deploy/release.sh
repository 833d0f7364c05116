#!/usr/bin/env bash
# Makes in dist/ what a release consists of: the wheel, the .proto files, the files of deploy/, a bill of materials
# (CycloneDX: what the wheel installs, with versions and licences) and the hashes of all of it.
#
#   PYTHON  interpreter with build and cyclonedx-bom, default python3
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
grep -q "^## $version" CHANGELOG.md || { echo "release: CHANGELOG.md says nothing of $version" >&2; exit 1; }
rm -rf dist build
mkdir dist
"$python" -m build --no-isolation --wheel --outdir dist >/dev/null
# The same files make the same archive, whoever packs them and when.
pack() { tar --sort=name --owner=0 --group=0 --numeric-owner --mtime='2000-01-01 00:00Z' -c "${@:2}" | gzip -n >"dist/$1"; }
pack "ringpost-$version-proto.tar.gz" proto/buf.yaml proto/ringpost/v1/*.proto
# deploy/secure is where the keys of a cluster of compose are.
pack "ringpost-$version-deploy.tar.gz" --exclude='*.whl' --exclude=__pycache__ --exclude=deploy/secure --exclude='*.token' deploy CHANGELOG.md SECURITY.md LICENSE
environment=$(mktemp -d)
trap 'rm -rf "$environment"' EXIT
"$python" -m venv "$environment"
"$environment/bin/python" -m pip --disable-pip-version-check install --quiet --constraint constraints.txt dist/*.whl
"$environment/bin/python" -m pip --disable-pip-version-check uninstall --quiet --yes pip setuptools
"$python" -m cyclonedx_py environment --output-reproducible --output-format JSON \
  --output-file "dist/ringpost-$version.cdx.json" "$environment/bin/python" 2>/dev/null
(cd dist && sha256sum -- * >SHA256SUMS)
cat dist/SHA256SUMS
