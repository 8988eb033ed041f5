#!/usr/bin/env bash
# Runs every scanner that can run here, and says plainly which could not: a scan without its data is no clean scan.
# Ends with 0 when all ran and found nothing, 1 when one found something, 3 when nothing was found but not all ran.
# SKIP="image dependencies" leaves scans out knowingly.
set -uo pipefail
cd "$(dirname "$0")/.." || exit

readonly BIN=.venv-scan/bin
clean='' found='' missing=''

scan() { # scan NAME COMMAND...: 0 is clean; 42, 126, 127 could not run, the last line tells why; all else found something
  local name=$1 output status
  shift
  case " ${SKIP:-} " in *" $name "*)
    printf -- '--- %s: left out, as SKIP says\n' "$name"
    return
    ;;
  esac
  printf -- '--- %s\n' "$name"
  output=$("$@" 2>&1)
  status=$?
  [ -z "$output" ] || printf '%s\n' "$output"
  case $status in
    0) clean="$clean $name" ;;
    42 | 126 | 127) missing="$missing"$'\n'"  $name: ${output##*$'\n'}" ;;
    *) found="$found $name" ;;
  esac
}

manifests() {
  command -v kubectl >/dev/null || {
    echo "kubectl is not here, so the manifests cannot be built"
    return 42
  }
  local folder status
  folder=$(mktemp -d)
  # Not its script, whose first line cannot name a Python in a path with a blank.
  kubectl kustomize k8s >"$folder/k8s.yaml" &&
    "$BIN/python" -m checkov.main --config-file hack/checkov.yaml -f "$folder/k8s.yaml"
  status=$?
  rm -rf "$folder"
  return $status
}

dependencies() {
  local output status
  # --strict: without it, packages that the service does not know count as clean.
  output=$("$BIN/pip-audit" --strict --progress-spinner off --require-hashes --disable-pip -r app/requirements.txt 2>&1)
  status=$?
  printf '%s\n' "$output"
  case $output in
    *"No known vulnerabilities found"*) return 0 ;;
    *"Found "*" known vulnerabilit"*) return 1 ;;
  esac
  echo "pip-audit could not ask its vulnerability service (status $status): its message stands above"
  return 42
}

image() {
  local image=${IMAGE_NAME:-}:${IMAGE_TAG:-}
  case $image in :* | *:)
    echo "name the image: make security-scan IMAGE_NAME=... IMAGE_TAG=..."
    return 42
    ;;
  esac
  if command -v trivy >/dev/null; then
    trivy image --exit-code 9 --ignore-unfixed --severity HIGH,CRITICAL "$image"
  elif command -v grype >/dev/null; then
    grype --fail-on high --only-fixed "$image"
  else
    echo "neither trivy nor grype is here"
    return 42
  fi
  case $? in
    0) ;;
    9) return 1 ;; # trivy found something
    2) return 1 ;; # grype did
    *)
      echo "the scanner itself failed: its message stands above"
      return 42
      ;;
  esac
}

# Not what bandit calls of low confidence: it takes every f-string with SQL for an injection. Here names, numbers, dates and
# zones, as hexadecimal digits, are put into statements that way; every other value is a parameter.
scan code "$BIN/bandit" --quiet --severity-level medium --confidence-level medium --recursive app
scan dockerfile "$BIN/hadolint" Dockerfile
scan manifests manifests
scan dependencies dependencies
scan image image

echo
[ -z "$clean" ] || echo "Found nothing:$clean"
[ -z "$found" ] || echo "FOUND SOMETHING:$found"
[ -z "$missing" ] || echo "DID NOT RUN, so nothing is known:$missing"
[ -z "$found" ] || exit 1
[ -z "$missing" ] || exit 3
