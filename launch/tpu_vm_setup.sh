#!/usr/bin/env bash
# Copies the committed code to every worker of a TPU VM and installs it there.
#
#   launch/tpu_vm_setup.sh [--dry_run] NAME ZONE
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
((${#ARGS[@]} == 2)) || die 'usage: [--dry_run] NAME ZONE'
cd "$ROOT"
archive=$(mktemp -d)/micdiffrep_jax.tar.gz
trap 'rm -rf "$(dirname "$archive")"' EXIT
# The image's own Python may be older than jax needs; this one, and with it the
# jax that it gets, is the one that the tests run on.
install='mkdir -p micdiffrep_jax && tar xzf micdiffrep_jax.tar.gz -C micdiffrep_jax &&
cd micdiffrep_jax && python3 -m pip install -q --user uv &&
~/.local/bin/uv venv -q --allow-existing --python 3.11 .venv &&
~/.local/bin/uv pip install -q -r requirements-tpu.txt -e .'
run git archive --format=tar.gz --output="$archive" HEAD
run gcloud compute tpus tpu-vm scp "$archive" "${ARGS[0]}:micdiffrep_jax.tar.gz" \
  --zone="${ARGS[1]}" --worker=all
run gcloud compute tpus tpu-vm ssh "${ARGS[0]}" --zone="${ARGS[1]}" \
  --worker=all --command="$install"
