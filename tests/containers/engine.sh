#!/usr/bin/env bash
# Finds a container engine and builds the cpu image with it; prints exports for the tests:
#   variables=$(tests/containers/engine.sh) && eval "$variables"
# With docker running, or a podman socket in DOCKER_HOST, nothing else is needed. Without either, and with
# ../shared/tools/containers.sh beside the checkout (or SECVEC_CONTAINERS naming it), that installs podman. With
# no engine, the tests skip. With one, an image that cannot be built is an error.
set -euo pipefail
cd "$(dirname "$0")/../.."
tools=${SECVEC_CONTAINERS:-../shared/tools/containers.sh}
tag=secvec-cpu:0.1.0
python_image=python:3.11-slim-bookworm

# pip's settings may name files that the tool does not know of: the build needs them as well.
constraints() {
  pip config list 2>/dev/null | sed -n "s/.*\.constraint='\(.*\)'$/\1/p" | tr ' ' '\n' | sed -n '/^\//p' | sort -u
}

answers() {
  # a socket is there before anyone listens at it
  for _ in $(seq 50); do
    curl --silent --fail --output /dev/null --unix-socket "${DOCKER_HOST#unix://}" http://engine/_ping && return
    sleep 0.2
  done
  return 1
}

start_engine() {
  local exports
  exports=$(bash "$tools" serve) && eval "$exports" || return 1
  answers && return
  # a service is taken for running whose number is another process's by now
  rm -f "$(dirname "${DOCKER_HOST#unix://}")/pid"
  bash "$tools" serve >/dev/null && answers
}

if docker info >/dev/null 2>&1; then
  build=(docker build)
elif [[ -n ${DOCKER_HOST:-} ]] && podman info >/dev/null 2>&1; then
  build=(podman build)
elif [[ -f $tools ]] && start_engine; then
  echo "export DOCKER_HOST=$DOCKER_HOST CONTAINERS_CONF=$CONTAINERS_CONF"
  python_image=localhost/$python_image
  mapfile -t mounts < <(constraints | sed 's/.*/--volume\n&:&:ro/')
  # pip is set up on such a machine to find a CPU build of torch by itself
  build=(bash "$tools" build "${mounts[@]}" --build-arg "BASE_IMAGE=$python_image" --build-arg TORCH_INDEX=)
else
  echo "no container engine: install docker or podman" >&2
  exit 0
fi

nice "${build[@]}" --file images/cpu/Containerfile --build-arg "REVISION=$(git rev-parse HEAD)" --tag "$tag" . >&2
echo "export SECVEC_TEST_IMAGE=$tag SECVEC_TEST_PYTHON_IMAGE=$python_image"
