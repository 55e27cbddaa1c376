#!/usr/bin/env bash
# Runs a task on all workers of a TPU VM, as one program.
#
#   launch/tpu_pod.sh [--dry_run] NAME ZONE --config=configs/pretrain.py:paper \
#     --workdir=gs://BUCKET/runs/paper
#
# On more than one worker the run's folder must be one that all see, gs:// or NFS.
# The same command goes on where a preempted run was.
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
((${#ARGS[@]} >= 3)) || die 'usage: [--dry_run] NAME ZONE --config=... [...]'
printf -v arguments '%q ' "${ARGS[@]:2}"
run gcloud compute tpus tpu-vm ssh "${ARGS[0]}" --zone="${ARGS[1]}" --worker=all \
  --command="cd micdiffrep_jax && JAX_PLATFORMS=tpu,cpu .venv/bin/python \
-m micdiffrep_jax.main --distributed=on ${arguments% }"
