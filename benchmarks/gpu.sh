#!/usr/bin/env bash
# Runs the benchmarks on one NVIDIA GPU, or with --small any of them on a CPU.
#
#   benchmarks/gpu.sh [--small] [OUT]
#
# OUT (default bench_out) gets results.json and a log of each part. A part that
# has finished is skipped, so the same command goes on after an interruption;
# one that fails does not stop the others. No part begins after 8 minutes.
# Without --small a broken driver is an error: it would be timed as a CPU.
set -u
cd "$(dirname "$0")/.." || exit 1
small=0
if [ "${1:-}" = --small ]; then small=1; shift; fi
out=${1:-bench_out}
mkdir -p "$out"
out=$(cd "$out" && pwd)
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$out/xla}"
# torch shares the card: JAX must not take most of it beforehand.
export XLA_PYTHON_CLIENT_PREALLOCATE=false
failed=0
if [ "$small" = 0 ]; then
  export JAX_PLATFORMS=cuda,cpu
  python -c 'import jax; assert jax.default_backend() == "gpu"' || {
    echo 'gpu.sh: jax sees no GPU; --small runs on a CPU.' >&2
    exit 2
  }
fi

part() {
  local name=$1
  shift
  [ -e "$out/$name.done" ] && { echo "$name: done before"; return; }
  local left=$((480 - SECONDS))
  if [ "$left" -le 0 ]; then
    echo "$name: no time left"
    failed=1
    return
  fi
  echo "$name: python -m benchmarks.$*"
  if timeout "$left" python -m "benchmarks.$1" "${@:2}" --out="$out/results.json" \
    > "$out/$name.log" 2>&1; then
    touch "$out/$name.done"
  else
    echo "$name: failed, see $out/$name.log"
    failed=1
  fi
}

if [ "$small" = 1 ]; then
  part train train_step --preset=test --batch_size=8 --rounds=2
  part taps tap_cost --preset=test --batch_size=8 --rounds=2
  part sampling sampling --preset=test --batch_size=1 --ddpm_steps=20 --rounds=1
  part budget step_budget --preset=test --batch_size=8 --steps=3
  part memory memory --preset=test --batch_size=8 --variants=float32
  part reading prepare_and_stream --files=40 --batches=5 --rounds=1
  part grid ablation --rows=64 --preset=test --encoder=test \
    --data=phantom:size_px=16,patients=60
else
  for dtype in bfloat16 float32; do
    for batch in 32 128; do
      part "train_${dtype}_$batch" train_step --preset=paper --dtype=$dtype \
        --batch_size=$batch --rounds=10
    done
  done
  part taps tap_cost --preset=paper --batch_size=128
  part sampling sampling --preset=tiny --batch_size=16 --rounds=2
  part budget step_budget --preset=paper
  part memory memory --preset=paper --variants=bfloat16,bfloat16\ remat\ norms
  part reading prepare_and_stream --files=1000
  part grid ablation --rows=1024
fi
exit $failed
