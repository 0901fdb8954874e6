#!/usr/bin/env bash
# Submits ingest, then train, and a watcher that starts with the training; prints the three job ids.
#
#   pipeline.sh SOURCE DATASET RUN CONFIG [SBATCH-OPTION...]
#
# Options go to all three, such as --account or --partition; INGEST_OPTIONS, TRAIN_OPTIONS and KNN_OPTIONS in the
# environment to one each, and INGEST_FLAGS, TRAIN_FLAGS and KNN_FLAGS to its instdisc, such as --retry-seconds=600.
# If a job fails, what depends on it is cancelled.
set -euo pipefail

[ $# -ge 4 ] || {
  sed -n '2,8s/^# \{0,1\}//p' "$0" >&2
  exit 2
}
jobs=$(cd "$(dirname "$0")" && pwd)
export SOURCE=$1 DATASET=$2 RUN=$3 CONFIG=$4 INSTDISC_JOBS=$jobs
shift 4
submit() { sbatch --parsable --export=ALL "$@"; }

# Options of one job may be several words, and no patterns of files.
set -f
# shellcheck disable=SC2086
{
  ingest=$(submit "$@" ${INGEST_OPTIONS:-} "$jobs/ingest.sbatch" ${INGEST_FLAGS:-})
  train=$(submit "$@" --dependency="afterok:$ingest" ${TRAIN_OPTIONS:-} "$jobs/train.sbatch" ${TRAIN_FLAGS:-})
  knn=$(submit "$@" --dependency="afterok:$ingest,after:$train" ${KNN_OPTIONS:-} "$jobs/knn.sbatch" ${KNN_FLAGS:-})
}
printf 'ingest %s\ntrain %s\nknn %s\n' "$ingest" "$train" "$knn"
