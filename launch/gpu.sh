#!/usr/bin/env bash
# Runs a task on all NVIDIA GPUs of this machine; CUDA_VISIBLE_DEVICES limits them.
#
#   launch/gpu.sh [--dry_run] [--deterministic] --config=configs/pretrain.py:paper \
#     --workdir=runs/paper
#
# --deterministic: a run that was stopped goes on bit for bit, as on a CPU. Sums are
# then taken in one order, and XLA chooses its kernels without timing them, which
# is slower; without it two runs differ in the last digits.
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
if [[ ${ARGS[0]:-} == --deterministic ]]; then
  ARGS=("${ARGS[@]:1}")
  export XLA_FLAGS="${XLA_FLAGS:-} --xla_gpu_deterministic_ops=true"
fi
((${#ARGS[@]})) || die 'give the arguments of micdiffrep_jax.main, --config=... first.'
cd "$ROOT"

# Fails where there is no GPU, instead of training on the CPU for weeks.
export JAX_PLATFORMS=cuda,cpu
# The default keeps a quarter of the memory for others; there are none.
export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}
export TF_CPP_MIN_LOG_LEVEL=${TF_CPP_MIN_LOG_LEVEL:-1}

if ! $DRY_RUN; then check_gpu; fi
run env JAX_PLATFORMS="$JAX_PLATFORMS" \
  XLA_PYTHON_CLIENT_MEM_FRACTION="$XLA_PYTHON_CLIENT_MEM_FRACTION" \
  ${XLA_FLAGS:+"XLA_FLAGS=$XLA_FLAGS"} \
  "$PYTHON" -m micdiffrep_jax.main "${ARGS[@]}"
