#!/usr/bin/env bash
# The best encoder that a GPU trains in a given time, as one small file.
#
#   launch/gpu_minutes.sh [--dry_run] DATASET OUT MINUTES [--config.FIELD=VALUE ...]
#
# Counts how many images a second the card trains, in a first short run, and then
# draws as many as MINUTES hold, so that the rate falls to 0 in time. A kernel
# classifier is fitted on the frozen features by folds of patients, and OUT/bundle.npz
# holds encoder and head, under 5 MB. Fields are those of configs/pretrain.py, behind
# the recipe below: 64 px pictures in patches of 2 px, bfloat16, Muon. With
# --config.teacher.checkpoint=RUN (or teacher.features) another encoder teaches it,
# and fields are those of configs/baselines.py:ddpm_aligned.
# Test is not read but by the probe's last line. What is in OUT already is not done
# again: the same command goes on where it was stopped.
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
((${#ARGS[@]} >= 3)) || die 'give DATASET OUT MINUTES, e.g. datasets/mine runs/lent 10.'
dataset=${ARGS[0]} out=${ARGS[1]} minutes=${ARGS[2]}
[[ $minutes =~ ^[1-9][0-9]*$ ]] || die "MINUTES is $minutes; give a whole number."
cd "$ROOT"
$DRY_RUN || [[ -e $dataset/dataset.json ]] ||
  die "$dataset is no dataset of configs/prepare.py."

method=(--config=pretrain:tiny)
if [[ " ${ARGS[*]:3}" == *' --config.teacher.'* ]]; then
  # One image in four is denoised, so 2.3 times as many are drawn in the minutes.
  method=('--config=baselines:ddpm_aligned,tiny' --config.align.tap=down1_0+mid
    --config.align.weight=4.0 --config.align.denoise_every=4)
fi
recipe=("${method[@]}" "--config.data.path=$dataset"
  --config.diffusion.target=v --config.diffusion.schedule=cosine
  --config.model.patch=2 --config.model.channels=32
  '--config.model.multipliers=(1,2,4,4)' --config.model.dtype=bfloat16
  --config.optim.name=muon --config.batch_size=256 --config.ema_decay=0.9995
  "--config.data.spare=('grouped','paper')" --config.monitor.probe_images=0
  "${ARGS[@]:3}")
layers="('down0_0','down1_0','down2_0','down3_0','mid')"
main=(bash launch/gpu.sh)

# A field of a finished run's results.
result_of() {
  "$PYTHON" -c 'import json, sys; print(json.load(open(sys.argv[1]))[sys.argv[2]])' "$@"
}

# Once: a finished run that is started again tells no speed.
if [[ ! -e $out/steps ]]; then
  run "${main[@]}" "${recipe[@]}" --config.steps=600 --config.log_every=50 \
    --config.eval_every=600 --config.monitor.samples=0 "--workdir=$out/speed"
fi
if $DRY_RUN; then steps=STEPS; elif [[ -e $out/steps ]]; then
  steps=$(<"$out/steps")
else
  speed=$(result_of "$out/speed/results.json" images_per_s)
  # Nine tenths: readings and saves take their share.
  batch=$(result_of "$out/speed/config.json" batch_size)
  steps=$("$PYTHON" -c "print(max(1, int(0.9 * 60 * $minutes * $speed / $batch)))")
  echo "$steps" >"$out/steps"
fi
run "${main[@]}" "${recipe[@]}" "--config.steps=$steps" "--config.eval_every=$steps" \
  --config.save_every=2000 "--workdir=$out/run"
run "${main[@]}" --config=probe:tiny "--config.checkpoint=$out/run" \
  "--config.data.path=$dataset" "--config.layers=$layers" \
  "--config.classic=('kernel',)" --config.bundle=kernel "--workdir=$out/probe"
run "${main[@]}" --config=bundle "--config.probe=$out/probe" --config.precision=int8 \
  --config.fingerprints=small "--config.out=$out/bundle.npz" "--workdir=$out/bundle"
