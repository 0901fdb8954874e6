#!/usr/bin/env bash
# From images to a kNN score and a page, into demo/. Usage: demo.sh [IMAGEFOLDER]
# Each step skips finished work; running this again resumes.
set -euo pipefail
cd "$(dirname "$0")/.."

instdisc=target/debug/instdisc
out=demo${1:+-own}
config=jobs/runs/demo.toml
field() { python3 -c 'import json, sys; v = json.load(open(sys.argv[1]))
for key in sys.argv[2].split("."): v = v.get(key, {})
print(v if v != {} else "")' "$1" "$2"; }
step() { printf '\n== %s\n' "$*" >&2; }

mkdir -p "$out"
if [ $# -gt 0 ]; then
  images=$1
else
  images=$out/images
  step "synth: drawing 2,500 images of 10 shapes"
  $instdisc synth --dest "$images" >"$out/synth.json"
fi

step "ingest: images to Parquet shards"
$instdisc ingest --source "$images" --dest "$out/dataset" >"$out/ingest.json"
$instdisc inspect "$out/dataset" >"$out/inspect.json"

split=""
for name in val valid validation test; do
  [ -n "$split" ] || [ -z "$(field "$out/inspect.json" "splits.$name.instances")" ] || split=$name
done
# Without a second split the training images vote for one another, each without itself.
leave_one_out=()
[ -n "$split" ] || { split=train; leave_one_out=(--leave-one-out); }

# A processor with matrix units for bf16 does a step in half the time; one without takes several times as long. A run
# that was begun keeps its own.
faster_precision() {
  local begun
  begun=$(sed -n 's/^precision = "\(.*\)"/\1/p' "$out/run/config.toml" 2>/dev/null || true)
  [ -z "$begun" ] || { echo "$begun" && return; }
  local kind seconds=()
  for kind in f32 bf16; do
    $instdisc --log error bench step --config $config --instances 2000 --steps 4 --warmup-steps 2 --precision $kind >"$out/step-$kind.json"
    seconds+=("$(field "$out/step-$kind.json" step_seconds)")
  done
  python3 -c 'import sys; f32, bf16 = map(float, sys.argv[1:])
faster = "bf16" if bf16 < 0.9 * f32 else "f32"
print(f"a step takes {f32:.2f} s in f32 and {bf16:.2f} s in bf16: {faster}", file=sys.stderr)
print(faster)' "${seconds[@]}"
}
step "bench: which precision is faster here"
precision=(--precision "$(faster_precision)")

step "train: encoder and memory bank in ${precision[1]}, on the CPU unless there is a GPU; Ctrl-C saves, the same command goes on"
$instdisc train --dataset "$out/dataset" --run "$out/run" --config "$config" "${precision[@]}" >"$out/train.json"
first=$out/run/checkpoints/step-00000000
last=$(ls -d "$out"/run/checkpoints/step-* | sort | tail -n 1)

rows=$(field "$out/inspect.json" splits.train.instances)
k=$((rows / 20 < 200 ? (rows / 20 > 0 ? rows / 20 : 1) : 200))
ks=$k
for fewer in 1 5 20; do [ $fewer -ge "$k" ] || ks=$ks,$fewer; done
step "embed and knn: the untrained encoder, the trained bank, the trained encoder"
features=$out/features-$(basename "$last")
mkdir -p "$features"
embed() { # embed CHECKPOINT SPLIT TABLE
  $instdisc --log warn embed --checkpoint "$1" --dataset "$out/dataset" --split "$2" --output "$3" >/dev/null 2>"$out/embed.log" ||
    { cat "$out/embed.log" >&2 && return 1; }
}
evaluate() { # evaluate BANK QUERIES NAME
  $instdisc --log warn knn --bank "$1" --queries "$2" --dataset "$out/dataset" --k "$ks" --temperature 0.07,0.2 \
    "${leave_one_out[@]}" --output "$out/$3.json" >/dev/null
}
embed "$first" "$split" "$features/untrained-$split.arrow"
embed "$first" train "$features/untrained-train.arrow"
embed "$last" "$split" "$features/$split.arrow"
embed "$last" train "$features/train.arrow"
evaluate "$features/untrained-train.arrow" "$features/untrained-$split.arrow" knn-untrained
evaluate "$last/bank.arrow" "$features/$split.arrow" knn-bank
evaluate "$features/train.arrow" "$features/$split.arrow" knn

percent() { python3 -c 'import json, sys; print(f"{100 * json.load(open(sys.argv[1]))[sys.argv[2]]:5.1f} %")' "$1" "$2"; }
cat <<TABLE

How many images of split "$split" get their class from the $k training images that are most similar to them:
  chance              $(percent "$out/knn.json" most_frequent_class)   always the most frequent class
  untrained encoder   $(percent "$out/knn-untrained.json" top1)   what colours and shapes tell by themselves
  trained bank        $(percent "$out/knn-bank.json" top1)   the vectors that training stored; labels were never used
  trained encoder     $(percent "$out/knn.json" top1)   the same, with every training image encoded again
(weighted by exp(cosine / 0.07); other K and temperatures are on the page)

page: file://$PWD/$out/knn.html
TABLE
