#!/usr/bin/env bash
# From pictures to a kNN score and a page, into demo/. Usage: demo.sh [IMAGEFOLDER]
# Every step finds its work done if it is; running this again goes on where it was.
set -euo pipefail
cd "$(dirname "$0")/.."

instdisc=target/release/instdisc
out=demo${1:+-own}
config=jobs/runs/demo.toml
field() { python3 -c 'import json, sys; v = json.load(open(sys.argv[1]))
for key in sys.argv[2].split("."): v = v.get(key, {})
print(v if v != {} else "")' "$1" "$2"; }
step() { printf '\n== %s\n' "$*" >&2; }

mkdir -p "$out"
if [ $# -gt 0 ]; then
  pictures=$1
else
  pictures=$out/pictures
  step "synth: drawing pictures"
  $instdisc synth --dest "$pictures" >"$out/synth.json"
fi

step "ingest: pictures to Parquet shards"
$instdisc ingest --source "$pictures" --dest "$out/dataset" >"$out/ingest.json"
$instdisc inspect --format json "$out/dataset" >"$out/inspect.json"

split=""
for name in val valid validation test; do
  [ -n "$split" ] || [ -z "$(field "$out/inspect.json" "splits.$name.instances")" ] || split=$name
done
# Without a second split the training pictures judge each other, each without itself.
leave_one_out=()
[ -n "$split" ] || { split=train; leave_one_out=(--leave-one-out); }

step "train: encoder and memory bank, on the CPU unless there is a GPU"
$instdisc train --dataset "$out/dataset" --run "$out/run" --config "$config" >"$out/train.json"
first=$out/run/checkpoints/step-00000000
last=$(ls -d "$out"/run/checkpoints/step-* | sort | tail -n 1)

rows=$(field "$out/inspect.json" splits.train.instances)
k=$((rows / 20 < 200 ? (rows / 20 > 0 ? rows / 20 : 1) : 200))
ks=$k
for fewer in 1 5 20; do [ $fewer -ge "$k" ] || ks=$ks,$fewer; done
embed() { $instdisc embed --checkpoint "$1" --dataset "$out/dataset" --split "$2" --output "$3" >/dev/null; }
judge() { # judge BANK QUERIES NAME
  $instdisc knn --bank "$1" --queries "$2" --dataset "$out/dataset" --k "$ks" --temperature 0.07,0.2 \
    "${leave_one_out[@]}" --output "$out/$3.json" >/dev/null
}
step "embed and knn: the untrained encoder, the trained bank, the trained encoder"
embed "$first" "$split" "$out/untrained-$split.arrow"
embed "$first" train "$out/untrained-train.arrow"
embed "$last" "$split" "$out/$split.arrow"
embed "$last" train "$out/train.arrow"
judge "$out/untrained-train.arrow" "$out/untrained-$split.arrow" knn-untrained
judge "$last/bank.arrow" "$out/$split.arrow" knn-bank
judge "$out/train.arrow" "$out/$split.arrow" knn

percent() { python3 -c 'import json, sys; print(f"{100 * json.load(open(sys.argv[1]))[sys.argv[2]]:5.1f} %")' "$1" "$2"; }
cat <<TABLE

kNN top-1 on split "$split" (k = $k, temperature 0.07)
  chance                               $(percent "$out/knn.json" chance)
  untrained encoder                    $(percent "$out/knn-untrained.json" top1)
  trained bank, as stored              $(percent "$out/knn-bank.json" top1)
  trained encoder, pictures re-encoded $(percent "$out/knn.json" top1)

page: file://$PWD/$out/knn.html
TABLE
