#!/usr/bin/env bash
# Compares a GPU with the CPU, measures steps beside PyTorch's, tries NCCL and trains CIFAR-10. It runs in the unpacked
# bundle, with Python's torch 2.11.0; docs/operations.md has the commands ("A GPU for half an hour").
# Usage: check.sh [--seconds N] [all|agree|bench|ranks|train]...
#
# Each of these is a list of steps. Every step runs, whatever the others did, and has a line in results/summary: name,
# device, outcome, exit code, seconds. A step that was ok before is passed over; training resumes. After N seconds (540)
# nothing more begins, and what runs is ended. results.tar.xz is what to bring back.
# DEVICE=cpu tries all this with small numbers. Exit code: 1 if a step failed, 75 if one is unfinished, to run again.
set -uo pipefail
cd "$(dirname "$0")" || exit

seconds=540
[ "${1-}" != --seconds ] || { seconds=$2 && shift 2; }
export DEVICE=${DEVICE:-cuda:0}
python=${PYTHON:-python3}
torch=$("$python" -c 'import os, torch; assert torch.__version__.startswith("2.11.0"), torch.__version__
print(os.path.dirname(torch.__file__))') || exit
export LD_LIBRARY_PATH="$torch/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" PATH="$PWD:$PATH"

rows=1281167 more_rows=14000000 negatives=4096 more_negatives=65536 dataset=dataset
bench=(--batch-size 256 --device "$DEVICE") steps=(--image-size 224 --steps 50 --warmup-steps 10) repeats=20
training=(--device "$DEVICE" --precision bf16 --channels-last)
if [ "$DEVICE" = cpu ]; then
  rows=2000 more_rows=20000 negatives=16 more_negatives=256 dataset=drawn
  bench=(--batch-size 8 --device cpu) steps=(--image-size 64 --steps 2 --warmup-steps 1) repeats=2
  training=(--device cpu --epochs 12 --limit 128 --arch resnet20-cifar --batch-size 32)
fi

mkdir -p results
failed=0 unfinished=0 running='' outcome=''
step() { # step NAME SECONDS COMMAND...: within these seconds and what is left of all
  local name=$1 limit=$2 code=- began=$SECONDS left=$((seconds - SECONDS))
  shift 2
  case $name in
    train-* | knn-*) ;;
    *) grep -qs "^$name $DEVICE ok " results/summary && return ;;
  esac
  limit=$((limit < left ? limit : left))
  outcome=unfinished
  if [ "$limit" -ge 5 ]; then
    echo "== $name, at most $limit s"
    timeout -s TERM -k 30 --preserve-status "$limit" "$@" </dev/null >"results/$name.json" 2>>"results/$name.log" &
    running=$!
    until wait $running; code=$?; ! kill -0 $running 2>/dev/null; do :; done
    case $code in
      0) outcome=ok ;;
      75) ;;
      *) outcome=failed ;;
    esac
    # Ended for the sake of all, or by a signal to all, not for its own slowness.
    if [ $code -ge 137 ] && { [ "$limit" -eq "$left" ] || [ "$seconds" -eq 0 ]; }; then outcome=unfinished; fi
  fi
  echo "$name $DEVICE $outcome $code $((SECONDS - began))" | tee -a results/summary
  case $outcome in
    ok) grep -E '^  "(difference.*|step_seconds|loss|top1)":|"median":' "results/$name.json" | head -n 5 ;;
    failed) failed=1 && tail -n 5 "results/$name.json" "results/$name.log" ;;
    unfinished) unfinished=1 ;;
  esac
}

pack() {
  local run
  for run in runs/*; do
    [ -d "$run" ] && mkdir -p "results/$run"
    cp "$run"/metrics.jsonl "$run"/eval/*.{json,html} "results/$run" 2>/dev/null
  done
  rm -f results.tar.xz
  "$python" -m tarfile -c results.tar.xz results && echo "results.tar.xz: $(stat -c %s results.tar.xz) bytes"
}
trap pack EXIT
trap 'seconds=0; kill -TERM $running' INT TERM

agree() {
  step agree-replay 120 "$python" agree.py replay
  step agree-objectives 120 "$python" agree.py objectives
  step agree-train 120 "$python" agree.py train
  # The CPU has none.
  [ "$DEVICE" = cpu ] || step agree-graphs 120 "$python" agree.py graphs
}

bench() {
  local arch round options
  for arch in resnet18 resnet50; do
    options=(--arch "$arch" --precision bf16 --channels-last "${bench[@]}" "${steps[@]}")
    options+=(--objective nce --negatives "$negatives" --instances "$rows")
    for round in 1 2; do
      step step-$arch-$round 60 instdisc bench step "${options[@]}"
      step step-$arch-pytorch-$round 60 "$python" pytorch_step.py "${options[@]}"
    done
    [ "$DEVICE" = cpu ] || step step-$arch-graphs 60 instdisc bench step "${options[@]}" --cuda-graphs
  done
  objective nce $negatives $rows
  objective infonce $more_negatives $rows
  objective softmax 1 $rows
  objective softmax 1 $more_rows
}

objective() { # objective NAME NEGATIVES ROWS: loss and gradient, without a network
  local options=(--objective "$1" --negatives "$2" --instances "$3" "${bench[@]}")
  step "objective-$1-$3" 60 instdisc bench objective "${options[@]}" --tf32 --repeats $repeats
  step "objective-$1-$3-pytorch" 60 "$python" pytorch_step.py --arch none --precision tf32 "${options[@]}" --steps $repeats
}

ranks() {
  # One process by NCCL, and two where there are two GPUs.
  step ranks 120 "$python" agree.py ranks
  if [ "$(nvidia-smi -L 2>/dev/null | wc -l)" -ge 2 ]; then
    step scaling 120 instdisc bench scaling --ranks 1,2 --batch-size 256 -- --arch resnet50 --precision bf16 --channels-last
  fi
}

train() {
  local objective trained run
  for objective in softmax nce; do
    run=runs/cifar10-$objective
    # What is left, but for the time to save and to vote. First rows and Z are this program's defaults, not the run
    # file's, with which both objectives learn more slowly (docs/performance.md).
    step "train-$objective" $((seconds - SECONDS - 60)) instdisc train --dataset $dataset --run "$run" \
      --config cifar10-resnet18-paper.toml --objective "$objective" --partition ema --bank-init encode \
      --checkpoint-every-epochs 10 --no-monitor "${training[@]}"
    trained=$outcome
    [ ! -d "$run/checkpoints" ] || step "knn-$objective" 60 instdisc knn --run "$run" --dataset $dataset
    [ "$trained" != unfinished ] || break
  done
}

case $* in '' | all) set -- agree bench ranks train ;; esac
for part; do
  case $part in
    agree | bench | ranks | train) $part ;;
    *) echo "error: $part: expected all, agree, bench, ranks or train" >&2 && exit 2 ;;
  esac
done
[ $failed = 0 ] || exit 1
[ $unfinished = 0 ] || exit 75
