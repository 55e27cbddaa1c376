# shellcheck shell=bash
# Sourced by the scripts beside it: what they share.
set -euo pipefail

: "${PYTHON:=python}"
# Where the package lies.
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export ROOT
DRY_RUN=false
ARGS=()
for arg in "$@"; do
  if [[ $arg == --dry_run ]]; then DRY_RUN=true; else ARGS+=("$arg"); fi
done

die() {
  echo "$(basename "$0"): $*" >&2
  exit 2
}

# Dies where this machine has no GPU, or where jax cannot use it: a broken driver
# would otherwise be a run on the CPU, for weeks.
check_gpu() {
  nvidia-smi -L >/dev/null 2>&1 ||
    die 'nvidia-smi finds no GPU: install the NVIDIA driver, or run' \
      "$PYTHON -m micdiffrep_jax.main without this script for the CPU."
  JAX_PLATFORMS=cuda,cpu "$PYTHON" -c \
    'import jax; assert jax.default_backend() == "gpu"' 2>/dev/null ||
    die "jax sees no GPU. Install it for the CUDA that nvidia-smi names:" \
      "pip install -r requirements-cuda12.txt, or requirements-cuda13.txt."
}

# Prints a command as it could be typed.
show() {
  printf '%q ' "$@"
  echo
}

# Prints a command, and runs it unless under --dry_run.
run() {
  show "$@"
  if ! $DRY_RUN; then "$@"; fi
}
