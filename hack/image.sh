#!/usr/bin/env bash
# Builds and pushes the image, with Docker or podman.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly TARGET=${1:?build or push}
read -r -a docker <<<"${DOCKER:-docker}" # it may be several words
fail() {
  printf 'make %s: %s\n' "$TARGET" "$*" >&2
  exit 1
}

command -v "${docker[0]}" >/dev/null || fail "${docker[0]} is not here. Install Docker, or name another: make $TARGET DOCKER=podman"

# The name that k8s/cronjob.yaml has, once it is yours. Without a tag, the commit is the tag: a tag that is used twice
# would not reach a node that has it already.
name=${IMAGE_NAME:-}
if [ -z "$name" ]; then
  name=$(awk '$1 == "image:" {print $2; exit}' k8s/cronjob.yaml)
  name=${name%@*}
  case ${name##*/} in *:*) name=${name%:*} ;; esac
  case $name in your-*) name=habit-notifier ;; esac
fi
revision=$(git describe --always --dirty --abbrev=12 2>/dev/null || echo unknown)
tag=${IMAGE_TAG:-$(git describe --tags --always --dirty 2>/dev/null || echo dev)}
# What no commit names is told apart by what the image is made of.
case ${IMAGE_TAG:-},$tag in
  ,*-dirty | ,dev) tag=$tag-$(sed -n 's/^!//p' .dockerignore | xargs cat Dockerfile .dockerignore | cksum | cut -d ' ' -f 1) ;;
esac
image=$name:$tag

build() {
  local arguments=() variable
  [ -z "${PLATFORM:-}" ] || arguments+=(--platform "$PLATFORM")
  # Where pip finds its packages, when the environment says so. Only the names are arguments: an index can hold a password.
  for variable in BASE_IMAGE PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_TRUSTED_HOST; do
    [ -z "${!variable:-}" ] || arguments+=(--build-arg "$variable")
  done
  # Labels, not arguments of the Dockerfile: podman 4 takes a label that an argument fills from its cache.
  "${docker[@]}" build ${arguments[@]+"${arguments[@]}"} --label "org.opencontainers.image.version=$tag" \
    --label "org.opencontainers.image.revision=$revision" --tag "$image" . || fail "the image was not built: the message stands above."
  echo "Built $image."
}

push() {
  case $name in
    your-*) fail "$name is still the placeholder. Name your registry: make push IMAGE_NAME=registry.example.com/habit-notifier IMAGE_TAG=$tag" ;;
    */*) ;;
    *) fail "$name names no registry. Name yours: make push IMAGE_NAME=registry.example.com/habit-notifier IMAGE_TAG=$tag, or write it into k8s/cronjob.yaml." ;;
  esac
  "${docker[@]}" image inspect "$image" >/dev/null 2>&1 || fail "there is no image $image on this machine. Build it: make build IMAGE_NAME=$name IMAGE_TAG=$tag"
  "${docker[@]}" push "$image" || fail "the registry did not take $image: its message stands above. Logged in? ${docker[*]} login"
  echo "Pushed $image. Next: make deploy SUSPEND=yes IMAGE_NAME=$name IMAGE_TAG=$tag, or make update-image when it is deployed already."
}

case $TARGET in
  build | push) "$TARGET" ;;
  *) fail "there is no such target." ;;
esac
