#!/usr/bin/env bash
# Runs a task on all NVIDIA GPUs of this machine; CUDA_VISIBLE_DEVICES limits them.
#
#   launch/gpu.sh [--dry_run] --config=configs/pretrain.py:paper --workdir=runs/paper
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
((${#ARGS[@]})) || die 'give the arguments of micdiffrep_jax.main, --config=... first.'
cd "$ROOT"

# Fails where there is no GPU, instead of training on the CPU for weeks.
export JAX_PLATFORMS=cuda,cpu
# The default keeps a quarter of the memory for others; there are none.
export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}
export TF_CPP_MIN_LOG_LEVEL=${TF_CPP_MIN_LOG_LEVEL:-1}

if ! $DRY_RUN; then
  nvidia-smi -L >/dev/null 2>&1 ||
    die 'nvidia-smi finds no GPU: install the NVIDIA driver, or run' \
      "$PYTHON -m micdiffrep_jax.main without this script for the CPU."
  "$PYTHON" -c 'import jax; assert jax.default_backend() == "gpu"' 2>/dev/null ||
    die "jax sees no GPU. Install it for the CUDA that nvidia-smi names:" \
      "pip install -r requirements-cuda12.txt, or requirements-cuda13.txt."
fi
run env JAX_PLATFORMS="$JAX_PLATFORMS" \
  XLA_PYTHON_CLIENT_MEM_FRACTION="$XLA_PYTHON_CLIENT_MEM_FRACTION" \
  "$PYTHON" -m micdiffrep_jax.main "${ARGS[@]}"
