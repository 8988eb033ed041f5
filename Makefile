# Everything there is to do with this project, as commands. `make` alone lists them.
# Works with GNU make 3.81 (macOS) and newer.

# Set but empty means not set: such a variable reaches nothing that make starts. All others do, from the environment and
# from the command line; hack/ and tests/ tell what for.
$(foreach name,$(.VARIABLES),$(if $(filter environment command,$(firstword $(origin $(name)))),$(if $(value $(name)),,$(eval \
  unexport $(name)))))

unexport PYTHONSAFEPATH  # it would hide hack/ and tests/ from python -m

SECRETS := DB_USER DB_PASSWORD TWILIO_ACCOUNT_SID TWILIO_AUTH_TOKEN TWILIO_API_KEY_SID TWILIO_API_KEY_SECRET HEARTBEAT_URL

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

CLUSTER := secret deploy preflight dry-run explain test logs status events shell suspend resume stop update-image \
  clean-jobs undeploy
.PHONY: help build push build-push $(CLUSTER) demo demo-picture check bench faults e2e lock lint security-scan

help: ## show this list
	@grep -hE '^[a-z][a-z0-9-]*:.* ## ' $(MAKEFILE_LIST) | awk -F ':.* ## ' '{printf "  make %-15s %s\n", $$1, $$2}'

# --- The image --------------------------------------------------------------------------------------------------------

build: ## build the image; IMAGE_NAME=registry/name IMAGE_TAG=v1.0.0, PLATFORM=linux/amd64, DOCKER=podman
push: ## push the image; IMAGE_NAME and IMAGE_TAG as for build
build push:
	@hack/image.sh $@

build-push: ## build, then push
	@hack/image.sh build
	@hack/image.sh push

# --- The cluster: the current context, or CONTEXT=name; OVERLAY=overlays/staging for another environment ---------------

secret: ## make or change the Secret from the environment, FILE=..., or by asking
deploy: ## apply the manifests; SUSPEND=yes: no runs yet; IMAGE_NAME and IMAGE_TAG, else what runs, else the file's
preflight: ## check all that a run needs, in a pod like the job's; nobody is texted
dry-run: ## who would be texted now, in a pod like the job's; nobody is texted
explain: ## why a user is texted or not; USER_ID=42
test: ## run the job once now, follow its log, and end as it ended (it texts people)
logs: ## the log of the newest run; JOB=name for another
status: ## schedule, runs, and how each ended
events: ## what the cluster said lately
shell: ## a shell in a pod like the job's: same image, settings and network
suspend: ## no scheduled runs from now on
resume: ## scheduled runs again
stop: ## suspend, and end the run that is at work; YES=yes in scripts
update-image: ## let the next runs use another image; IMAGE_TAG=v1.1.0
clean-jobs: ## delete the finished runs, with their logs
undeploy: ## delete what deploy made, not the Secret nor the namespace; PURGE=yes those, too

$(CLUSTER): %:
	$(foreach name,$(SECRETS),$(if $(filter command,$(firstword $(origin $(name)))),$(error \
	  $(name) on the command line can be seen by everybody on this machine: set it in the environment, or use FILE=)))
	@$(or $(PYTHON),python3) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo 'This needs Python 3.11 or newer. Name one that you have: make $@ PYTHON=python3.13' >&2; exit 1; }
	@$(or $(PYTHON),python3) -B -m hack.cluster $@

# --- Development ------------------------------------------------------------------------------------------------------

demo: .venv/.ready ## run the whole job on sample people, with nothing set up before
	@.venv/bin/python -m tests.sandbox.demo

demo-picture: .venv/.ready ## draw docs/demo.svg anew, from what the demo shows
	@.venv/bin/python -m tests.sandbox.picture

check: .venv/.ready .venv-scan/.ready ## prove all that needs no cluster: linters, types, tests, image, manifests; FULL=1 at length
	@.venv/bin/python -m tests.check

lint: .venv/.ready .venv-scan/.ready ## code linting: Python, shell, YAML, Dockerfile
	.venv/bin/ruff check .
	.venv-scan/bin/shellcheck hack/*.sh $(wildcard .ci/run)
	.venv-scan/bin/yamllint --strict .
	.venv-scan/bin/hadolint Dockerfile

security-scan: .venv-scan/.ready ## scan code, Dockerfile, manifests, dependencies and image; SKIP="image ..." leaves some out
	@hack/security-scan.sh

bench: .venv/.ready ## measure users and texts per second, and memory
	@.venv/bin/python -m tests.bench

faults: .venv/.ready ## break the job at random places; RUNS=100 SEED=1
	@.venv/bin/python -m tests.faults $(or $(RUNS),100) $(or $(SEED),1)

e2e: .venv/.ready ## walk through the documents on a real cluster: needs KUBECONFIG and more, see tests/e2e/README.md
	E2E=required .venv/bin/python -m pytest tests/e2e

lock: .venv-scan/.ready ## resolve the dependencies anew: app/requirements.txt and those of development
	@set -e; for name in app/requirements requirements-dev requirements-scan; do \
	  .venv-scan/bin/uv pip compile --quiet --upgrade --no-strip-extras --universal --python-version 3.11 --generate-hashes \
	    --custom-compile-command 'make lock' --output-file $$name.txt $$name.in; done

# --- Virtual environments, made when they are needed ------------------------------------------------------------------

define make_venv
	@$(or $(PYTHON),python3) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo 'This needs Python 3.11 or newer. Name one that you have: make $(or $(MAKECMDGOALS),demo) PYTHON=python3.13' >&2; exit 1; }
	@$(or $(PYTHON),python3) -m venv --clear $(@D) >/dev/null || { \
	  echo 'No virtual environment could be made, see above. Without ensurepip: apt-get install python3-venv' >&2; exit 1; }
	@echo 'Installing $< into $(@D). This happens once.'
	@$(@D)/bin/python -m pip install --no-user --quiet --disable-pip-version-check --require-hashes -r $< || { \
	  echo 'pip could not install $<: its message stands above. When the index cannot be reached, set PIP_INDEX_URL.' >&2; exit 1; }
	@touch $@
endef

.venv/.ready: requirements-dev.txt
	$(make_venv)

.venv-scan/.ready: requirements-scan.txt
	$(make_venv)
