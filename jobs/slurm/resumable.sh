# Read by the job scripts beside it: runs one command that can be interrupted and goes on when it is repeated.
#
#   resumable COMMAND...
#
# 75 and 143 (a signal came; a checkpoint was saved where there is one) put the job back into the queue, under
# the same id, as often as INSTDISC_RESTARTS allows; 69 (a store is unavailable) five times; any other failure
# ends it. What SLURM itself requeues (preemption, a lost node) goes on in the same way.
set -euo pipefail

resumable() {
  local code=0 state restarts=${SLURM_RESTART_COUNT:-0} most=0
  echo "== $(date -u +%FT%TZ) job $SLURM_JOB_ID on ${SLURM_JOB_NODELIST:-?}, restart $restarts: $*" >&2
  # Tasks get their signals from SLURM; the shell must only outlive them to see how they end.
  trap : TERM USR1 USR2
  "$@" &
  local child=$!
  while :; do
    wait "$child" && code=0 || code=$?
    kill -0 "$child" 2>/dev/null || break
  done
  case $code in
    75 | 143) most=${INSTDISC_RESTARTS:-100} ;;
    69) most=5 ;;
  esac
  # A job that is being cancelled, or that SLURM requeues itself, is not RUNNING any more: to requeue it then
  # would bring a cancelled job back to life.
  state=$(scontrol --oneliner show job "$SLURM_JOB_ID" | sed -n 's/.* JobState=\([A-Z_]*\).*/\1/p')
  echo "== $(date -u +%FT%TZ) exit code $code, state $state" >&2
  if [ "$state" = RUNNING ] && [ "$restarts" -lt "$most" ]; then
    scontrol requeue "$SLURM_JOB_ID"
    # Until SLURM ends this script: an exit code would count as the job's.
    sleep 60
  fi
  exit "$code"
}
