#!/usr/bin/env bash
# Runs the units of a config's sweep side by side.
#
#   launch/sweep.sh --gpus --config=pretrain:small --sweep=lr --workdir=runs/lr  one
#     run per GPU; `--config=NAME --help` tells the sweeps of a config
#   launch/sweep.sh --pool=4  ...  four at a time, on the CPU or sharing a device
#   launch/sweep.sh --slurm   ...  a job array, one job per unit
#
# Finished units are skipped, so the same command goes on with a broken sweep; a
# unit that fails does not stop the others. The table comes last, and any time with
# python -m micdiffrep_jax.main ... --sweep_list. --dry_run prints the commands.
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$ROOT"
where=${ARGS[0]:-}
ARGS=("${ARGS[@]:1}")
program=("$PYTHON" -m micdiffrep_jax.main "${ARGS[@]}")
table() { JAX_PLATFORMS=cpu "${program[@]}" --sweep_list; }

units=$(($(table | wc -l) - 1))
((units > 0)) || die 'no units; see above, and give --config=... and --sweep=NAME.'
case $where in
  --slurm)
    run sbatch --array="0-$((units - 1))" launch/slurm.sbatch "${ARGS[@]}"
    exit
    ;;
  --pool=[1-9]*)
    workers=${where#--pool=}
    gpus=()
    # By default each would reserve three quarters of the GPU that they share.
    printf -v share '0.%03d' $((900 / workers))
    export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-$share}
    ;;
  --gpus)
    if [[ -n ${CUDA_VISIBLE_DEVICES:-} ]]; then
      IFS=, read -ra gpus <<<"$CUDA_VISIBLE_DEVICES"
    else
      mapfile -t gpus < <(nvidia-smi --query-gpu=index --format=csv,noheader)
    fi
    workers=${#gpus[@]}
    ((workers > 0)) || die 'nvidia-smi finds no GPU; use --pool=N for the CPU.'
    if ! $DRY_RUN; then check_gpu; fi
    export JAX_PLATFORMS=cuda,cpu
    ;;
  *) die 'the first argument is --gpus, --pool=N or --slurm.' ;;
esac

failures=$(mktemp)
trap 'rm -f "$failures"' EXIT
# What a worker does with a unit; $SLOT counts the workers from 0.
unit() {
  local prefix=() status=0 gpus
  read -ra gpus <<<"$GPUS"
  ((${#gpus[@]})) && prefix=(env "CUDA_VISIBLE_DEVICES=${gpus[SLOT]}")
  run "${prefix[@]}" "${@:2}" "--sweep_index=$1" || status=$?
  if ((status)); then echo "unit $1: exit status $status" >>"$FAILURES"; fi
}
export -f unit run show
export DRY_RUN GPUS="${gpus[*]}" FAILURES="$failures"
seq 0 $((units - 1)) | xargs -P "$workers" --process-slot-var=SLOT -I '{}' \
  bash -c 'unit "$@"' unit '{}' "${program[@]}"
if ! $DRY_RUN; then table; fi
if [[ -s $failures ]]; then
  sort -V "$failures" >&2
  exit 1
fi
