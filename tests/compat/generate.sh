#!/usr/bin/env bash
# Writes the files that README.md lists, with the program of an earlier commit.
# Usage: INSTDISC=PROGRAM tests/compat/generate.sh
set -euo pipefail
cd "$(dirname "$0")"

program=$(realpath "$INSTDISC")
here=$PWD
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export OMP_NUM_THREADS=1

train() { # train RUN EPOCHS [OPTION...]
  local run=$1 epochs=$2
  shift 2
  "$program" train --dataset dataset --run "$run" --epochs "$epochs" --arch resnet20-cifar --image-size 16 --dim 16 \
    --batch-size 10 --objective nce --negatives 16 --lr 0.003 --seed 6 --device cpu --checkpoint-every-steps 4 --keep 0 \
    --log-every-steps 1 "$@"
}

"$program" synth --train-per-class 3 --val-per-class 1 --image-size 32 --dest images
"$program" ingest --source images --dest dataset --row-group 16

# Most convolutions begin with 0 and stay there, which compresses well: their blocks pass on what they get.
train untrained 1
python3 - untrained/checkpoints/step-00000000/model.safetensors init.safetensors <<'PYTHON'
import json, re, sys

data = bytearray(open(sys.argv[1], "rb").read())
start = 8 + int.from_bytes(data[:8], "little")
for name, tensor in json.loads(data[8:start]).items():
    if re.match(r"layer(1\.[12]|2\.[12]|3\.\d)\.conv", name):
        begin, end = tensor["data_offsets"]
        data[start + begin : start + end] = bytes(end - begin)
open(sys.argv[2], "wb").write(data)
PYTHON
train run 2 --init init.safetensors

# As if it had been killed in its second epoch, which ends at step 6.
cp run/checkpoints/step-00000006/bank.arrow finished.arrow
rm -r run/checkpoints/step-0000000[036] run/finished.json
checkpoint=run/checkpoints/step-00000004
"$program" embed --checkpoint $checkpoint --dataset dataset --split val --device cpu --output val.arrow
"$program" knn --bank $checkpoint --queries val.arrow --k 5,1 --temperature 0.07,1 --output knn.json \
  --neighbours neighbours.parquet

tar --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 -c run | gzip -9n >run.tar.gz
rm -rf "$here/dataset"
cp -r dataset run.tar.gz finished.arrow val.arrow knn.json neighbours.parquet "$here"
