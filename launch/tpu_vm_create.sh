#!/usr/bin/env bash
# Creates a Cloud TPU VM or pod slice; more options go to gcloud as they are.
#
#   launch/tpu_vm_create.sh [--dry_run] NAME ZONE TYPE [--spot ...]
#   launch/tpu_vm_create.sh mri us-east5-a v6e-8 --spot
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
((${#ARGS[@]} >= 3)) || die 'usage: [--dry_run] NAME ZONE TYPE [options of gcloud]'
case ${ARGS[2]} in
  v6e-*) version=v2-alpha-tpuv6e ;;
  v5litepod-*) version=v2-alpha-tpuv5-lite ;;
  v5p-*) version=v2-alpha-tpuv5 ;;
  v2-* | v3-* | v4-*) version=tpu-ubuntu2204-base ;;
  *) die "unknown type ${ARGS[2]}; v6e-8, v5litepod-16, v5p-8, v4-8 and so on." ;;
esac
run gcloud compute tpus tpu-vm create "${ARGS[0]}" --zone="${ARGS[1]}" \
  --accelerator-type="${ARGS[2]}" --version="$version" "${ARGS[@]:3}"
