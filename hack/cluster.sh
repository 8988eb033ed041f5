#!/usr/bin/env bash
# The Makefile's targets that talk to a cluster, a function each; their names are at the end. Runs with bash 3.2 (macOS),
# and needs nothing but kubectl: no jq, no yq.
# shellcheck disable=SC2016 # templates of kubectl hold $names of their own
set -euo pipefail
cd "$(dirname "$0")/.."

readonly TARGET=${1:?which target?}
readonly OVERLAY=${OVERLAY:-k8s}
readonly CRONJOB=habit-notifier CONFIG=habit-notifier-config SECRET=habit-notifier-secrets LABEL=app=habit-notifier
readonly INDEX=batch.kubernetes.io/job-completion-index # the label of a pod that is one shard of its Job
readonly SECRET_NAMES="DB_USER DB_PASSWORD TWILIO_ACCOUNT_SID TWILIO_AUTH_TOKEN TWILIO_API_KEY_SID TWILIO_API_KEY_SECRET"

say() { printf '%s\n' "$*"; }
fail() {
  printf 'make %s: %s\n' "$TARGET" "$*" >&2
  exit 1
}

# For what needs no cluster: whichever context is chosen must not matter.
offline() { KUBECONFIG=/dev/null kubectl "$@"; }
cluster() { kubectl ${CONTEXT:+--context "$CONTEXT"} "$@"; }
here() { cluster --namespace "$NAMESPACE" "$@"; }

# --- what the files say -----------------------------------------------------------------------------------------------

# only KIND...: the documents of these kinds out of a stream of YAML as kustomize writes it. With - in front: all others.
only() {
  awk -v kinds=" $* " '
    function flush() { if (text != "" && (index(kinds, " " kind " ") > 0) != (kinds ~ /^ - /)) printf "---\n%s", text; text = ""; kind = "" }
    /^---$/ { flush(); next }
    /^kind: / { kind = $2 }
    { text = text $0 "\n" }
    END { flush() }'
}

render() {
  RENDERED=$(offline kustomize "$OVERLAY") || fail "kustomize cannot build $OVERLAY: its message stands above."
  [ -n "$(printf '%s\n' "$RENDERED" | only CronJob)" ] || fail "there is no CronJob in $OVERLAY."
}

cronjob_in_files() { printf '%s\n' "$RENDERED" | only CronJob | offline patch --local --type=merge -p '{}' -f - -o "jsonpath=$1"; }

readonly IMAGE_PATH="{.spec.jobTemplate.spec.template.spec.containers[?(@.name==\"$CRONJOB\")].image}"

# An image is NAME:TAG, where NAME may hold a registry's port, or NAME@DIGEST.
image_name() {
  local name=${1%@*} last
  last=${name##*/}
  case $last in *:*) name=${name%:*} ;; esac
  printf '%s' "$name"
}
image_tag() {
  case $1 in *@*) printf '@%s' "${1#*@}" ;; *) case ${1##*/} in *:*) printf ':%s' "${1##*:}" ;; esac ;; esac
}

# chosen_image CURRENT: what IMAGE_NAME and IMAGE_TAG make of it.
chosen_image() {
  local name=${IMAGE_NAME:-$(image_name "$1")} tag
  tag=$(image_tag "$1")
  if [ -n "${IMAGE_TAG:-}" ]; then
    tag=:$IMAGE_TAG
  elif [ "$name" != "$(image_name "$1")" ]; then
    fail "IMAGE_NAME=$name needs its tag, too: make $TARGET IMAGE_NAME=$name IMAGE_TAG=v1.0.0"
  fi
  printf '%s' "$name$tag"
}

# --- what the cluster says --------------------------------------------------------------------------------------------

need_cluster() {
  local said
  command -v kubectl >/dev/null || fail "kubectl is not here. Install it: https://kubernetes.io/docs/tasks/tools/"
  said=$(cluster get --raw /version --request-timeout=15s 2>&1) ||
    fail "kubectl reaches no cluster (${said##*$'\n'}). Choose one: kubectl config use-context NAME, or CONTEXT=NAME, or KUBECONFIG."
  CONTEXT_NAME=${CONTEXT:-$(kubectl config current-context 2>/dev/null || echo default)}
  if [ -z "${NAMESPACE:-}" ]; then
    NAMESPACE=habit-tracker
    if [ "$OVERLAY" != k8s ]; then
      render
      NAMESPACE=$(cronjob_in_files '{.metadata.namespace}')
    fi
  fi
}

need_cronjob() {
  need_cluster
  local said
  said=$(here get cronjob "$CRONJOB" -o name 2>&1) || case $said in
    *NotFound* | *"not found"*) fail "there is no CronJob $CRONJOB in namespace $NAMESPACE of $CONTEXT_NAME. Deploy it: make deploy" ;;
    *) fail "the cluster does not show the CronJob: $said" ;;
  esac
}

cronjob_in_cluster() { here get cronjob "$CRONJOB" --ignore-not-found -o "jsonpath=$1"; }

# The namespace as the files have it, so that its labels hold before the first pod.
make_namespace() {
  [ -n "$(cluster get namespace "$NAMESPACE" --ignore-not-found -o name 2>/dev/null)" ] && return
  render
  printf '%s\n' "$RENDERED" | only Namespace | cluster apply -f -
}

# The names in the Secret, each as NAME=real or NAME=placeholder; an empty value does not count. No value leaves the cluster whole.
secret_in_cluster() {
  here get secret "$SECRET" -o go-template='{{range $k, $v := .data}}{{if $v}}{{$k}}={{if eq (printf "%.5s" (base64decode $v)) "your-"}}placeholder{{else}}real{{end}}
{{end}}{{end}}' 2>&1
}

# --- secret -----------------------------------------------------------------------------------------------------------

# read_file: the values of FILE into variables of this shell. Either lines NAME=value, or a filled copy of k8s/secret.yaml.
read_file() {
  local line name value values number=0 yaml=
  [ -r "$FILE" ] || fail "there is no file $FILE that can be read."
  # A filled file is the whole truth: what the shell happens to hold does not mix with it.
  for name in $SECRET_NAMES; do unset "$name"; done
  if grep -q '^kind: *Secret' "$FILE"; then
    values=$(offline patch --local --type=merge -p '{}' -f "$FILE" -o go-template='{{range $k, $v := .data}}{{$k}}={{base64decode $v}}
{{end}}{{range $k, $v := .stringData}}{{$k}}={{$v}}
{{end}}') || fail "$FILE is no Secret that kubectl understands: its message stands above."
    yaml=yes
    [ -n "$values" ] || fail "there are no values in $FILE: take the \"# \" away and fill them in."
  else
    values=$(cat "$FILE")
  fi
  while IFS= read -r line || [ -n "$line" ]; do
    number=$((number + 1))
    line=${line%$'\r'}
    line=${line#"${line%%[![:space:]]*}"}
    case $line in '' | '#'*) continue ;; esac
    line=${line#export }
    name=${line%%=*} value=${line#*=}
    case " $SECRET_NAMES " in
      *" $name "*) ;;
      *) fail "line $number of $FILE is not one of these as NAME=value: $SECRET_NAMES" ;;
    esac
    [ -n "$yaml" ] || case $value in \"*\" | \'*\') value=${value:1:${#value}-2} ;; esac
    export "$name=$value"
  done < <(printf '%s\n' "$values")
}

# ask NAME: a value that is missing, from the person at the keyboard.
ask() {
  local value
  [ -t 0 ] || return 0
  case $1 in
    DB_USER | TWILIO_ACCOUNT_SID) read -rp "$1: " value ;;
    *)
      read -rsp "$1 (not shown): " value
      echo
      ;;
  esac
  export "$1=$value"
}

secret() {
  local name present missing='' names='' arguments=() data replaced=''
  need_cluster
  [ -z "${FILE:-}" ] || read_file
  if [ -n "${TWILIO_AUTH_TOKEN:-}" ] && [ -n "${TWILIO_API_KEY_SECRET:-}" ]; then
    fail "TWILIO_AUTH_TOKEN and TWILIO_API_KEY_SECRET are both set: the program takes one of them. Unset the other."
  fi
  make_namespace
  present=$(secret_in_cluster) || present=none
  for name in DB_USER DB_PASSWORD TWILIO_ACCOUNT_SID TWILIO_AUTH_TOKEN; do
    if [ "$name" = TWILIO_AUTH_TOKEN ] && [ -n "${TWILIO_API_KEY_SECRET:-}" ]; then continue; fi
    case $present in *"$name=real"*) continue ;; esac
    case $name,$present in TWILIO_AUTH_TOKEN,*TWILIO_API_KEY_SECRET=real*) continue ;; esac
    [ -n "${!name:-}" ] || ask "$name"
    [ -n "${!name:-}" ] || missing="$missing $name"
  done
  [ -z "$missing" ] ||
    fail "these are missing:$missing. Set them in the environment, or name a file with lines NAME=value: make secret FILE=..."
  for name in $SECRET_NAMES; do
    [ -n "${!name:-}" ] || continue
    case ${!name} in your-*) fail "$name is still the placeholder ${!name}." ;; esac
    names="$names $name"
  done
  [ -n "$names" ] || fail "nothing to change: set the variables that are new, of $SECRET_NAMES."
  # The values travel through pipes: not through arguments, which everybody on the machine can list, and not through files.
  for name in $names; do arguments[${#arguments[@]}]="$name"; done
  data=$(secret_data "${arguments[@]}")
  # The program takes one kind of Twilio credentials: the new kind replaces the old one.
  case $names in
    *TWILIO_API_KEY*) replaced=',"TWILIO_AUTH_TOKEN":null' ;;
    *TWILIO_AUTH_TOKEN*) replaced=',"TWILIO_API_KEY_SID":null,"TWILIO_API_KEY_SECRET":null' ;;
  esac
  if [ -z "$(here get secret "$SECRET" --ignore-not-found -o name)" ]; then
    printf '{"apiVersion":"v1","kind":"Secret","type":"Opaque","metadata":{"name":"%s","labels":{"app":"habit-notifier"}},"data":%s}' \
      "$SECRET" "$data" | here create -f - >/dev/null
    say "Secret $SECRET made in namespace $NAMESPACE of $CONTEXT_NAME, with$names."
  else
    printf '{"data":%s%s}}' "${data%\}}" "$replaced" | here patch secret "$SECRET" --type=merge --patch-file=/dev/stdin >/dev/null
    say "Secret $SECRET in namespace $NAMESPACE of $CONTEXT_NAME: set$names. What else it holds stays. The next run reads it."
  fi
}

# secret_data NAME...: their values as {"NAME":"base64", ...}. printf is the shell's own, so no process shows them.
secret_data() {
  local name comma=
  printf '{'
  for name in "$@"; do
    printf '%s"%s":"%s"' "$comma" "$name" "$(printf '%s' "${!name}" | base64 | tr -d '\n')"
    comma=,
  done
  printf '}'
}

# --- deploy, update-image, undeploy -----------------------------------------------------------------------------------

# What stands in the way of a deploy is collected, so that it is told all at once.
PROBLEMS=
problem() { PROBLEMS="$PROBLEMS"$'\n'"  - $*"; }

check_config() {
  local left
  left=$(printf '%s\n' "$RENDERED" | only ConfigMap | sed -nE 's/^  ([A-Z_]+): "?(your-[^"]*)"?$/\1 (\2)/p' | paste -sd , - | sed 's/,/, /g')
  [ -z "$left" ] || problem "The ConfigMap still has placeholders: $left. Write your values into $OVERLAY$([ "$OVERLAY" != k8s ] || printf /configmap.yaml)."
}

check_secret() {
  local held name missing='' placeholders=''
  if [ -n "$(printf '%s\n' "$RENDERED" | only ExternalSecret)" ]; then return; fi
  held=$(secret_in_cluster) || case $held in
    *NotFound* | *"not found"*)
      problem "There is no Secret $SECRET in namespace $NAMESPACE. Make it: make secret"
      return
      ;;
    *Forbidden* | *forbidden*)
      say "Note: you may not read Secrets here, so $SECRET was not checked."
      return
      ;;
    *) fail "the cluster does not show the Secret: $held" ;;
  esac
  for name in DB_USER DB_PASSWORD TWILIO_ACCOUNT_SID TWILIO_AUTH_TOKEN; do
    case $held in *"$name=real"*) continue ;; *"$name=placeholder"*) placeholders="$placeholders $name" && continue ;; esac
    case $name,$held in TWILIO_AUTH_TOKEN,*TWILIO_API_KEY_SECRET=real*) continue ;; esac
    # Not in this Secret, but from a file or from another place.
    case $RENDERED in *"${name}_FILE"* | *"name: $name"$'\n'*) continue ;; esac
    missing="$missing $name"
  done
  [ -z "$placeholders" ] || problem "The Secret $SECRET still has placeholders:$placeholders. Set them: make secret"
  [ -z "$missing" ] || problem "The Secret $SECRET has no$missing. Add it: make secret"
}

# components/sharded copies the one into the other. Whoever patches it afterwards would leave users out.
check_shards() {
  local shards count
  shards=$(cronjob_in_files '{.spec.jobTemplate.spec.completions}')
  count=$(cronjob_in_files "{.spec.jobTemplate.spec.template.spec.containers[?(@.name==\"$CRONJOB\")].env[?(@.name==\"SHARD_COUNT\")].value}")
  [ "${shards:-1}" = "${count:-1}" ] ||
    problem "The Job has ${shards:-1} pods (completions), and SHARD_COUNT is ${count:-1}: users would be left out. Write the number into components/sharded, and nowhere else."
}

deploy() {
  local before file after scratch
  need_cluster
  [ -n "${RENDERED:-}" ] || render
  [ "$NAMESPACE" = "$(cronjob_in_files '{.metadata.namespace}')" ] ||
    fail "$OVERLAY is for namespace $(cronjob_in_files '{.metadata.namespace}'), not $NAMESPACE. Make an overlay: overlays/staging is an example."
  check_config
  check_shards
  file=$(cronjob_in_files "$IMAGE_PATH")
  before=$(cronjob_in_cluster "$IMAGE_PATH")
  case $before in your-*) before= ;; esac
  after=$(chosen_image "${before:-$file}")
  case $after in your-*) problem "The image is still the placeholder $after. Name yours: make deploy IMAGE_NAME=... IMAGE_TAG=..., or write it into k8s/cronjob.yaml." ;; esac
  check_secret
  [ -z "$PROBLEMS" ] || fail "nothing was applied to namespace $NAMESPACE of $CONTEXT_NAME, because:$PROBLEMS"
  if grep -qE '^ *(stringData|data):' k8s/secret.yaml; then
    say "WARNING: k8s/secret.yaml is filled in. It is not applied here, but kubectl apply -f k8s/ would overwrite the Secret, and a commit would publish it."
  fi

  say "Deploying $OVERLAY to namespace $NAMESPACE of $CONTEXT_NAME."
  scratch=$(mktemp -d)
  # shellcheck disable=SC2064 # this very folder
  trap "rm -rf '$scratch'" EXIT
  printf '%s\n' "$RENDERED" >"$scratch/all.yaml"
  cat >"$scratch/kustomization.yaml" <<YAML
resources: [all.yaml]
patches:
  - target: {kind: CronJob, name: $CRONJOB}
    patch: |-
      apiVersion: batch/v1
      kind: CronJob
      metadata: {name: $CRONJOB}
      spec: {jobTemplate: {spec: {template: {spec: {containers: [{name: $CRONJOB, image: "$after"}]}}}}}
YAML
  cluster apply -k "$scratch" || fail "the cluster refused a part: its message stands above. What it took is in place; run make deploy again afterwards."
  if [ -z "$before" ] || [ "$before" = "$after" ]; then say "Image: $after"; else say "Image: $before -> $after"; fi
  if [ "$file" != "$after" ] && [ -z "${IMAGE_NAME:-}${IMAGE_TAG:-}" ]; then
    case $file in your-*) ;; *) say "The files name $file; the cluster's image was kept. To take theirs: make update-image IMAGE_NAME=$(image_name "$file") IMAGE_TAG=$(image_tag "$file" | cut -c2-)" ;; esac
  fi
  schedule_in_words
}

schedule_in_words() {
  if [ "$(cronjob_in_cluster '{.spec.suspend}')" = true ]; then
    say "It is still suspended: make resume"
  else
    say "Schedule: $(cronjob_in_cluster '{.spec.schedule}') ($(cronjob_in_cluster '{.spec.timeZone}')). A run right now: make test"
  fi
}

update_image() {
  local before after
  [ -n "${IMAGE_NAME:-}${IMAGE_TAG:-}" ] || fail "which image? make update-image IMAGE_TAG=v1.1.0"
  need_cronjob
  before=$(cronjob_in_cluster "$IMAGE_PATH")
  after=$(chosen_image "$before")
  case $after in your-*) fail "the image is still the placeholder $after. Name yours: IMAGE_NAME=... IMAGE_TAG=..." ;; esac
  here set image "cronjob/$CRONJOB" "$CRONJOB=$after" >/dev/null
  say "Image: $before -> $after. The next run uses it; back again: make update-image IMAGE_NAME=$(image_name "$before") IMAGE_TAG=$(image_tag "$before" | cut -c2-)"
}

undeploy() {
  local others
  need_cluster
  render
  here delete cronjob "$CRONJOB" --ignore-not-found
  here delete jobs,pods -l "$LABEL" --ignore-not-found
  printf '%s\n' "$RENDERED" | only - Namespace Secret CronJob | cluster delete --ignore-not-found -f -
  if [ "${PURGE:-}" != yes ]; then
    say "The namespace $NAMESPACE and the Secret $SECRET stay. To remove them, too: make undeploy PURGE=yes"
  else
    here delete secret "$SECRET" --ignore-not-found
    others=$(here get deployments,statefulsets,daemonsets,cronjobs,jobs,pods,services,persistentvolumeclaims --ignore-not-found -o name)
    if [ -z "$others" ]; then
      cluster delete namespace "$NAMESPACE" --ignore-not-found
    else
      say "The namespace $NAMESPACE stays: it holds more than this project, $(say "$others" | head -3 | paste -sd ' ' -). To remove it with everything: kubectl delete namespace $NAMESPACE"
    fi
  fi
  say "The ledger stays in the database. It is what keeps people from a second text."
}

# --- test, logs -------------------------------------------------------------------------------------------------------

# Complete, or Failed and why; nothing while it is at work.
outcome_of() {
  here get job "$1" --ignore-not-found -o go-template='{{range .status.conditions}}{{if eq .status "True"}}{{if eq .type "Complete"}}Complete{{end}}{{if eq .type "Failed"}}Failed: {{.reason}}: {{.message}}{{with $.status.failedIndexes}}: {{.}}{{end}}{{end}}{{end}}{{end}}'
}

pods_of() { here get pods -l "job-name=$1" --sort-by=.metadata.creationTimestamp -o name; }

# Of a pod's container: started, gone (ended before it started), or waiting and why.
state_of() {
  here get "$1" --ignore-not-found -o go-template='{{$state := "waiting"}}{{range .status.containerStatuses}}{{if eq .name "'$CRONJOB'"}}{{if .state.waiting}}{{$state = printf "waiting %s: %v" .state.waiting.reason .state.waiting.message}}{{else if .state.terminated}}{{if eq .state.terminated.reason "StartError" "ContainerCannotRun"}}{{$state = printf "broken %s: %s" .state.terminated.reason .state.terminated.message}}{{else}}{{$state = "started"}}{{end}}{{else}}{{$state = "started"}}{{end}}{{end}}{{end}}{{if eq $state "waiting"}}{{if eq .status.phase "Failed"}}{{$state = printf "gone %v: %v" .status.reason .status.message}}{{end}}{{range .status.conditions}}{{if and (eq .type "PodScheduled") (eq .status "False")}}{{$state = printf "waiting %s: %s" .reason .message}}{{end}}{{end}}{{end}}{{$state}}'
}

# How a Job ended: the exit code of its last pod, or, of the last pods of its shards, 2 or else the highest.
exit_code_of() {
  here get pods -l "job-name=$1" --sort-by=.metadata.creationTimestamp -o go-template='{{range .items}}{{$shard := or (index .metadata.labels "'$INDEX'") "0"}}{{range .status.containerStatuses}}{{if eq .name "'$CRONJOB'"}}{{with .state.terminated}}{{$shard}} {{.exitCode}}
{{end}}{{end}}{{end}}{{end}}' | awk '
    { last[$1] = $2 }
    END { for (shard in last) if (last[shard] == 2 || worst != 2 && last[shard] >= worst) worst = last[shard]; print worst }'
}

remedy_for() {
  case $1 in
    *"secret \"$SECRET\" not found"*) say "make secret" ;;
    *"configmap \"$CONFIG\" not found"*) say "make deploy" ;;
    *CreateContainerConfigError* | *FailedMount*) say "make what it names, in namespace $NAMESPACE." ;;
    *"exec format error"*) say "the image is for another kind of processor: make build-push PLATFORM=linux/amd64 (or linux/arm64)." ;;
    *InvalidImageName*) say "make update-image IMAGE_NAME=... IMAGE_TAG=..." ;;
    *ErrImage* | *ImagePullBackOff*) say "is it pushed (make push), and is the name right (make update-image)? For a private registry see imagePullSecrets in k8s/serviceaccount.yaml." ;;
    *Unschedulable*) say "make room on a node, or lower resources.requests in k8s/cronjob.yaml." ;;
    *quota*) say "raise the namespace's ResourceQuota, or lower resources in k8s/cronjob.yaml." ;;
    *PodSecurity*) say "an overlay or a component weakened the pod's securityContext: compare it with k8s/cronjob.yaml." ;;
    *serviceaccount*) say "make deploy" ;;
    *) say "make events" ;;
  esac
}

# Why a Job has no pod at all: the controller's newest complaint.
why_no_pod() { here get events --field-selector "involvedObject.name=$1,reason=FailedCreate" -o jsonpath='{range .items[*]}{.message}{"\n"}{end}' | tail -1; }

# What a pod waits for that has its image and no container: a ConfigMap to mount, most often.
why_no_container() {
  local reason
  for reason in FailedMount FailedCreatePodSandBox; do
    here get events --field-selector "involvedObject.name=${1#pod/},reason=$reason" -o jsonpath='{range .items[*]}{.reason}: {.message}{"\n"}{end}' | tail -1
  done | tail -1
}

# give_up JOB WHY: a Job that cannot start is taken back, so that it does not text people at some later moment.
give_up() {
  here delete job "$1" --wait=false >/dev/null
  fail "the run cannot start: $2
Remedy: $(remedy_for "$2")
The Job $1 was deleted again, so that it does not start by itself later."
}

# follow JOB PATIENCE: prints the log of each of its pods, one after the other, until the Job has ended. A Job whose pod is
# kept from starting for PATIENCE seconds is given up, unless another of its shards has started; 0 never gives up.
follow() {
  local job=$1 patience=$2 followed=' ' trouble_since='' outcome pods pod shard='' state trouble noted=
  while :; do
    outcome=$(outcome_of "$job")
    pods=$(pods_of "$job")
    trouble=
    for pod in $pods; do
      case $followed in *" $pod "*) continue ;; esac
      state=$(state_of "$pod")
      case $state in
        started)
          shard=$(here get "$pod" --ignore-not-found -o go-template='{{with index .metadata.labels "'$INDEX'"}}{{.}}{{end}}')
          if [ -n "$shard" ]; then say "--- shard $shard: $pod"; elif [ "$followed" != ' ' ]; then say "--- replaced by $pod"; fi
          follow_pod "$pod"
          followed="$followed$pod "
          ;;
        broken*) [ "$patience" = 0 ] || [ -n "$shard" ] || give_up "$job" "${state#broken }" ;;
        gone*)
          say "--- $pod ended before it started (${state#gone })"
          followed="$followed$pod "
          ;;
        "waiting ContainerCreating"* | "waiting PodInitializing"*) trouble=$(why_no_container "$pod") ;;
        "waiting "*) trouble=${state#waiting } ;;
      esac
    done
    [ -z "$outcome" ] || return 0
    [ -n "$(here get job "$job" --ignore-not-found -o name)" ] || fail "somebody deleted the Job $job."
    [ -n "$pods" ] || trouble=$(why_no_pod "$job")
    if [ -n "$trouble" ]; then trouble_since=${trouble_since:-$SECONDS}; else trouble_since=; fi
    if [ "$patience" != 0 ] && [ -z "$shard" ] && [ -n "$trouble_since" ] && [ $((SECONDS - trouble_since)) -ge "$patience" ]; then
      case $trouble in
        Unschedulable*) # a cluster that grows by itself makes room in some minutes
          [ -n "$noted" ] || say "The pod waits for a node ($trouble). Remedy: $(remedy_for "$trouble") Waiting on; Ctrl-C stops the waiting."
          noted=yes
          ;;
        *) give_up "$job" "$trouble" ;;
      esac
    fi
    sleep 1
  done
}

# `kubectl logs -f` can end early, when the connection breaks: then it goes on from there.
follow_pod() {
  local since running=0
  here logs -f "$1" -c "$CRONJOB" || true
  while since=$(date -u +%Y-%m-%dT%H:%M:%SZ) && [ $running -lt 600 ]; do
    [ -n "$(here get "$1" --ignore-not-found -o jsonpath="{.status.containerStatuses[?(@.name==\"$CRONJOB\")].state.running}" 2>/dev/null)" ] || return 0
    running=$((running + 1))
    sleep 1
    here logs -f "$1" -c "$CRONJOB" --since-time="$since" 2>/dev/null || true
  done
}

verdict() { # verdict JOB: in words, and its exit code
  local outcome code
  outcome=$(outcome_of "$1")
  code=$(exit_code_of "$1")
  case $outcome in
    Complete*)
      say "The Job $1 is complete."
      return 0
      ;;
    *DeadlineExceeded*) say "The Job $1 hit activeDeadlineSeconds, which deletes its pod with the log. See \"A Job without a log\" in DEPLOYMENT.md." ;;
    *) say "The Job $1 failed (${outcome#Failed: }). Exit code ${code:-unknown}: see \"Exit codes\" in DEPLOYMENT.md." ;;
  esac
  if [ "${code:-0}" = 0 ]; then return 1; else return "$code"; fi
}

test_() {
  local job said
  need_cronjob
  job=$CRONJOB-manual-$(date -u +%Y%m%d-%H%M%S)
  said=$(here create job "$job" --from="cronjob/$CRONJOB" 2>&1) || fail "the cluster takes no Job: $said"
  say "Job $job started in namespace $NAMESPACE of $CONTEXT_NAME: a real run."
  trap 'say "The Job goes on in the cluster: make logs"; exit 130' INT
  follow "$job" 20
  verdict "$job"
}

# The newest Job that the CronJob owns; also one made from it by hand. Rehearsals have no owner.
newest_job() {
  here get jobs -l "$LABEL" --sort-by=.metadata.creationTimestamp -o go-template='{{range .items}}{{if .metadata.ownerReferences}}{{.metadata.name}}
{{end}}{{end}}' | tail -1
}

logs() {
  local job
  need_cluster
  job=${JOB:-$(newest_job)}
  [ -n "$job" ] || fail "there was no run yet, or it is deleted already. Start one: make test. When is the next? make status"
  say "Job $job, made $(here get job "$job" -o jsonpath='{.metadata.creationTimestamp}') in namespace $NAMESPACE of $CONTEXT_NAME"
  if [ -z "$(pods_of "$job")" ] && [ -n "$(outcome_of "$job")" ]; then
    say "There is no log left: its pods are gone."
  elif [ -z "$(pods_of "$job")" ]; then
    say "No pod yet. $(why_no_pod "$job")"
    return
  else
    trap 'exit 0' INT
    follow "$job" 0
  fi
  verdict "$job" || true
}

# --- looking, and switching -------------------------------------------------------------------------------------------

status() {
  need_cronjob
  say "Namespace $NAMESPACE of $CONTEXT_NAME"
  here get cronjob "$CRONJOB" -o wide
  say "Last complete run: $(cronjob_in_cluster '{.status.lastSuccessfulTime}' | grep . || echo never)"
  [ "$(cronjob_in_cluster '{.spec.suspend}')" != true ] || say "It is suspended: make resume"
  say ''
  here get jobs -l "$LABEL" --sort-by=.metadata.creationTimestamp
  say ''
  # Of what a container left behind, the last line: it is one JSON object, or the end of the log.
  here get pods -l "$LABEL" --sort-by=.metadata.creationTimestamp -o go-template='{{range .items}}{{.metadata.name}}{{"\t"}}{{.status.phase}}{{"\t"}}{{with .status.containerStatuses}}{{with (index . 0).state.terminated}}{{.exitCode}} {{.reason}}{{"\t"}}{{with .message}}{{printf "%q" .}}{{end}}{{end}}{{end}}
{{end}}' | awk -F '\t' 'BEGIN { printf "%-48s %-10s %-14s %s\n", "POD", "PHASE", "EXIT", "LAST WORDS" }
    { last = $4; gsub(/^"|(\\n)*"$/, "", last); sub(/.*\\n/, "", last); gsub(/\\"/, "\"", last); printf "%-48s %-10s %-14s %s\n", $1, $2, $3, last }'
}

events() {
  need_cluster
  say "Events in namespace $NAMESPACE of $CONTEXT_NAME. A cluster keeps them for about an hour."
  here get events --sort-by=.metadata.creationTimestamp
}

suspend() {
  need_cronjob
  here patch cronjob "$CRONJOB" -p '{"spec":{"suspend":true}}' >/dev/null
  say "Suspended: no scheduled run starts until make resume. A deploy leaves it suspended. make test still works."
  [ -z "$(cronjob_in_cluster '{.status.active}')" ] || say "A run is at work and goes on. To stop it: kubectl delete job -n $NAMESPACE $(cronjob_in_cluster '{.status.active[*].name}')"
}

resume() {
  need_cronjob
  here patch cronjob "$CRONJOB" -p '{"spec":{"suspend":false}}' >/dev/null
  say "Resumed: $(cronjob_in_cluster '{.spec.schedule}') ($(cronjob_in_cluster '{.spec.timeZone}')). A run that was missed within the last hour starts at once."
}

shell() {
  local pod template
  need_cronjob
  pod=$CRONJOB-shell-$(date -u +%Y%m%d-%H%M%S)
  template=$(cronjob_in_cluster '{.spec.jobTemplate.spec.template}')
  # The Job's own pod, with `sleep` in the program's place. It ends itself after an hour, whatever happens to this terminal.
  # A single pod has no index, so it is no shard: what is run in it serves everybody.
  printf '{"apiVersion":"v1","kind":"Pod",%s' "${template#\{}" |
    offline patch --local -f - -o json --type=strategic -p "{
      \"metadata\": {\"name\": \"$pod\", \"namespace\": \"$NAMESPACE\", \"labels\": {\"habit-notifier/purpose\": \"shell\"}},
      \"spec\": {\"activeDeadlineSeconds\": 3600, \"terminationGracePeriodSeconds\": 1,
                 \"containers\": [{\"name\": \"$CRONJOB\", \"command\": [\"sleep\", \"3600\"], \"args\": null,
                                   \"env\": [{\"name\": \"SHARD_COUNT\", \"value\": \"1\"}]}]}}" |
    here create -f - >/dev/null || fail "the cluster takes no pod: its message stands above."
  # shellcheck disable=SC2064 # this very pod
  trap "kubectl ${CONTEXT:+--context '$CONTEXT'} -n '$NAMESPACE' delete pod '$pod' --wait=false >/dev/null" EXIT
  here wait --for=condition=Ready --timeout=60s "pod/$pod" >/dev/null 2>&1 ||
    fail "the pod does not start: $(state_of "pod/$pod")
Remedy: $(remedy_for "$(state_of "pod/$pod")")"
  if [ -t 0 ]; then
    say "A shell in $pod: the job's image, settings and network. To run the job itself: python /app/habit_notifier.py (it texts people). Leave: exit"
    here exec -it "$pod" -c "$CRONJOB" -- /bin/sh
  else
    here exec -i "$pod" -c "$CRONJOB" -- /bin/sh
  fi
}

clean_jobs() {
  local jobs
  need_cluster
  jobs=$(here get jobs -l "$LABEL" -o go-template='{{range .items}}{{$name := .metadata.name}}{{range .status.conditions}}{{if and (eq .status "True") (or (eq .type "Complete") (eq .type "Failed"))}}{{$name}}
{{end}}{{end}}{{end}}')
  if [ -z "$jobs" ]; then
    say "There are no finished Jobs in namespace $NAMESPACE of $CONTEXT_NAME."
    return
  fi
  say "$jobs" | xargs kubectl ${CONTEXT:+--context "$CONTEXT"} -n "$NAMESPACE" delete job
}

case $TARGET in
  secret | deploy | undeploy | logs | status | events | shell | suspend | resume) "$TARGET" ;;
  update-image) update_image ;;
  clean-jobs) clean_jobs ;;
  test) test_ ;;
  *) fail "there is no such target." ;;
esac
