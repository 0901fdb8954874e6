# Read by the job scripts beside it: runs one command that can be interrupted and resumes when repeated.
#
#   resumable COMMAND...
#
# 75 and 143 (a signal came; a checkpoint was saved where there is one) and 69 (a store or another process is
# unavailable) put the job back into the queue under the same id, until it was restarted INSTDISC_RESTARTS times
# (100); any other failure ends it. SLURM's hold after a requeue, two minutes, is the pause between tries. What
# SLURM itself requeues (preemption, a lost node) resumes in the same way.
set -euo pipefail

# Since SLURM 22.05 srun does not take it from the job: without it all threads of a task may share one core.
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}

resumable() {
  local code=0 state most=0 restarts=${SLURM_RESTART_COUNT:-0}
  # An element of an array by its own name: one of them has the whole array's id.
  local job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
  job=${job:-$SLURM_JOB_ID}
  echo "== $(date -u +%FT%TZ) job $job on ${SLURM_JOB_NODELIST:-?}, restart $restarts: $*" >&2
  # Tasks get their signals from SLURM; the shell must only outlive them to see how they end.
  trap : TERM USR1 USR2
  "$@" &
  local child=$!
  while :; do
    wait "$child" && code=0 || code=$?
    kill -0 "$child" 2>/dev/null || break
  done
  case $code in
    69 | 75 | 143) most=${INSTDISC_RESTARTS:-100} ;;
  esac
  # A job that is being cancelled, or that SLURM requeues itself, is not RUNNING any more: to requeue it then
  # would bring a cancelled job back to life.
  state=$(insist scontrol --oneliner show job "$job" | sed -n 's/.* JobState=\([A-Z_]*\).*/\1/p')
  echo "== $(date -u +%FT%TZ) exit code $code, state $state" >&2
  if [ "$state" = RUNNING ] && [ "$restarts" -lt "$most" ]; then
    insist scontrol requeue "$job"
    # Until SLURM ends this script: an exit code would count as the job's.
    sleep 60
  fi
  exit "$code"
}

# A controller that is busy or being restarted answers a minute later.
insist() {
  local try
  for try in 1 2 3 4 5 6 7 8 9 10 11 12; do
    "$@" && return
    sleep 5
  done
  "$@"
}
