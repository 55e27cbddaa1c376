#!/usr/bin/env bash
# Runs a task on all workers of a TPU VM, as one program.
#
#   launch/tpu_pod.sh [--dry_run] NAME ZONE --config=configs/pretrain.py:paper \
#     --workdir=gs://BUCKET/runs/paper
#   launch/tpu_pod.sh [--dry_run] NAME ZONE --stop    saves and stops it
#
# On more than one worker the run's folder must be one that all see, gs:// or NFS.
# The run outlives this connection: the same command shows its log again. Where the
# run was preempted, or has ended, the command starts it, and it goes on.
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
((${#ARGS[@]} >= 3)) || die 'usage: [--dry_run] NAME ZONE --config=... [...]'
printf -v arguments '%q ' "${ARGS[@]:2}"
run gcloud compute tpus tpu-vm ssh "${ARGS[0]}" --zone="${ARGS[1]}" --worker=all \
  --command="PYTHON=.venv/bin/python bash micdiffrep_jax/launch/tpu_worker.sh \
${arguments% }"
