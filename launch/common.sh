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
