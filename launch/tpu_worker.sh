#!/usr/bin/env bash
# On a worker of a TPU VM: runs a task apart from this connection, and shows its log.
# tpu_pod.sh calls it on all workers.
#
#   launch/tpu_worker.sh [--dry_run] --config=... --workdir=...
#   launch/tpu_worker.sh [--dry_run] --stop    the run saves, and ends
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
((${#ARGS[@]})) || die 'give the arguments of micdiffrep_jax.main, or --stop.'
cd "$ROOT"
here=runs/tpu_worker
pid=$(cat "$here/pid" 2>/dev/null || true)
printf -v asked '%q ' "${ARGS[@]}"

main=("$PYTHON" -m micdiffrep_jax.main --distributed=on "${ARGS[@]}")
if $DRY_RUN; then
  show "${main[@]}"
  exit
fi
alive() { [[ -n $pid ]] && kill -0 "$pid" 2>/dev/null; }

if [[ ${ARGS[0]} == --stop ]]; then
  alive || die 'nothing runs here.'
  kill -TERM "$pid"
  tail -n 5 -F --pid="$pid" "$here/log" 2>/dev/null || true
  exit
fi
if alive; then
  [[ $(cat "$here/arguments") == "$asked" ]] ||
    die "another task runs here, $(cat "$here/arguments"): wait for it, or give" \
      '--stop first.'
else
  # Seconds now, rather than a run that fails once its data are read.
  JAX_PLATFORMS=tpu,cpu "$PYTHON" -c \
    'import jax; assert jax.default_backend() == "tpu"' ||
    die 'jax sees no TPU here: run launch/tpu_vm_setup.sh, and stop what holds it.'
  mkdir -p "$here"
  printf '%s' "$asked" >"$here/arguments"
  rm -f "$here/status"
  export JAX_PLATFORMS=tpu,cpu
  # A session of its own hears nothing of a connection that is lost. The shell
  # stays for the exit status and hands a signal on.
  # shellcheck disable=SC2016
  setsid nohup bash -c '
    "$@" & task=$!
    trap "kill -TERM $task" TERM
    until wait $task; status=$?; ! kill -0 $task 2>/dev/null; do :; done
    echo $status >"$0.part" && mv "$0.part" "$0"
  ' "$here/status" "${main[@]}" </dev/null >"$here/log" 2>&1 &
  pid=$!
  echo "$pid" >"$here/pid"
fi
tail -n +1 -F --pid="$pid" "$here/log" 2>/dev/null || true
exit "$(cat "$here/status" 2>/dev/null || echo 1)"
