#!/usr/bin/env bash
# What only a GPU can show: benchmarks/gpu.sh OUT PART...
# Each part has a time limit of its own, writes OUT/PART.txt (and OUT/PART.json where it is a benchmark), and costs the
# others nothing when it fails; at the end there is one line a part. Without parts: those that are checks.
#   checks
#     tests         pytest -m gpu, without unsloth
#     unsloth       pytest -m gpu with unsloth, and train.py model.backend=unsloth
#     train         train.py in several dtypes, quantisations and optimizers
#     evaluate      every way to predict, and test-time fine-tuning
#     fit           the batch of training.per_device_train_batch_size=auto, in dry runs and in a run
#     export        merged weights, the adapter and, with TOKENIZER, GGUF, of a dense and of a quantised base
#     small         benchmarks/training.py and benchmarks/decode.py in small
#   figures
#     ttft_4b       benchmarks/ttft.py, several slots
#     ttft_4b_loop  the bare PEFT loop of benchmarks/ttft.py
#     decode        benchmarks/decode.py
#     training      benchmarks/training.py, 0.5B
#     training_4b   benchmarks/training.py, 4B
#     memory        benchmarks/memory.py, 0.5B: the estimate against the peak
#     speed         arcft speed, 0.5B; OUT/speed holds the study
#     pretrain      a larger bundled model
# TOGETHER=1 runs them side by side, which spoils figures. QUICK=1 takes the bundled model and a few steps, and five
# times the time limits, so that every part can be tried without a GPU. PAIRS=FOLDER is what `pretrain` learns from
# (scripts/generate_re_arc.sh), PRETRAIN_STEPS=N its optimizer steps, TOKENIZER=FOLDER a tokenizer for random weights in
# place of the bundled one, UNSLOTH_SITE=FOLDER where unsloth is and TRL_PYTHON=FILE a Python with trl, if they are not
# installed. TRAINING_SETUPS, TTFT_WAYS, TTFT_TASKS and TTFT_STEPS choose what `training_4b` and `ttft_4b` measure.
set -uo pipefail
cd "$(dirname "$0")/.."

declare -A limit=(
  [tests]=110 [unsloth]=110 [train]=110 [evaluate]=110 [fit]=110 [export]=170 [small]=110
  [ttft_4b]=170 [ttft_4b_loop]=120 [decode]=75 [training]=180 [training_4b]=110 [memory]=240 [speed]=110 [pretrain]=240
)
checks=(tests unsloth train evaluate fit export small)
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
export QUICK=${QUICK:-} TOKENIZER=${TOKENIZER:-bundled:tiny}
common=(preview=false tracking=none)
trl=(${TRL_PYTHON:+--trl-python "$TRL_PYTHON"})

# unsloth_too: what a part needs that imports it; others are started faster without.
unsloth_too() { export PYTHONPATH="$PYTHONPATH${UNSLOTH_SITE:+:$UNSLOTH_SITE}"; }

# with WORD...: the words, where every part is tried in small.
with() { [ -n "$QUICK" ] && printf '%s\n' "$@"; true; }

# random_base FOLDER: Qwen2.5-0.5B with random weights.
random_base() {
  (cd benchmarks && python3 -c "
from argparse import Namespace
from pathlib import Path
from throughput.inputs import save_base
save_base('qwen2_5_0_5b', 'bfloat16', Path('$1'), Namespace(tokenizer='$TOKENIZER', smollm2=None))")
}

# choose_model: overrides of train.py in the array `model`, of that base, or in small of the bundled model.
choose_model() {
  if [ -n "$QUICK" ]; then
    model=(model=tiny)
    return
  fi
  local base
  base=$(mktemp -d)
  random_base "$base" || return 1
  model=(model=qwen2_5_0_5b model.path="$base" prompt=grid_only)
}

part_tests() {
  # SIGINT, so that pytest still says what it has seen.
  timeout -s INT 100 python3 -m pytest -q -m gpu -rs -k "not unsloth" --tb=short tests/house/test_gpu.py tests/training/test_slots.py \
    tests/training/test_trainer.py
}

# In processes of its own, for it changes transformers.
part_unsloth() {
  unsloth_too
  local status=0 base
  python3 -m pytest -q -m gpu -rs -k unsloth --tb=short tests/house/test_gpu.py || status=1
  base=$(mktemp -d)
  if [ -n "$QUICK" ]; then return $status; fi
  random_base "$base" || return 1
  for tasks in 0 2; do
    python3 train.py model=qwen2_5_0_5b model.path="$base" model.backend=unsloth prompt=grid_only showcase=none \
      training.max_steps=10 training.max_seq_length=2048 training.generation_tasks=$tasks data.max_tokens=512 \
      hydra.run.dir="$(mktemp -d)" "${common[@]}" || status=1
  done
  return $status
}

# The main job on the GPU, with what it shows in the end; then in other dtypes, with other bases.
part_train() {
  local status=0 words
  python3 train.py "${common[@]}" hydra.run.dir="$(mktemp -d)" $(with showcase=none training.max_steps=2) || status=1
  for words in "training.dtype=float16" "model.init=random model.seed=1 training.dtype=float32" \
    "model.quantization=nf4 optimizer=paged_adamw_8bit" "model.quantization=int8 optimizer=adamw_8bit" \
    "lora=none optimizer=muon training.max_batch_tokens=4096" \
    "training.packing=true training.max_batch_tokens=4096 training.gradient_checkpointing=true"; do
    [ -n "$QUICK" ] && [ "$words" = training.dtype=float16 ] && continue
    echo "== $words"
    # shellcheck disable=SC2086 # several words on purpose
    python3 train.py "${common[@]}" showcase=none hydra.run.dir="$(mktemp -d)" training.max_steps=10 \
      training.generation_tasks=2 $words $(with training.max_steps=2) || status=1
  done
  return $status
}

# Every way to predict, and test-time fine-tuning with one process and with several.
part_evaluate() {
  local status=0 run words
  run=$(mktemp -d)
  python3 train.py "${common[@]}" showcase=none training.max_steps=10 training.generation_tasks=0 \
    data.held_out=4 hydra.run.dir="$run" >/dev/null || return 1
  for words in "inference=greedy inference.speculate=true selection=verify" "inference=search selection=score" \
    "inference=sample inference.dtype=float16" "ttft=per_task ttft.max_steps=8 selection=score" \
    "ttft=per_task ttft.max_steps=8 ttft.workers=processes ttft.num_workers=2 ttft.slots=2"; do
    echo "== $words"
    # shellcheck disable=SC2086
    python3 evaluate.py checkpoint="$run" tracking=none hydra.run.dir="$(mktemp -d)" $words || status=1
  done
  return $status
}

# What `auto` takes for the memory of this GPU: as it is, for a step of many long examples, and for four bits.
part_fit() {
  local status=0 words model
  choose_model || return 1
  for words in "dry_run=true" "dry_run=true training.effective_batch_size=256 training.max_seq_length=8192" \
    "dry_run=true model.quantization=nf4 optimizer=paged_adamw_8bit lora.r=128" "training.max_steps=3"; do
    echo "== $words"
    # shellcheck disable=SC2086
    python3 train.py "${model[@]}" "${common[@]}" showcase=none training.generation_tasks=0 data.held_out=4 \
      training.per_device_train_batch_size=auto training.gradient_checkpointing=auto \
      hydra.run.dir="$(mktemp -d)/run" $words || status=1
  done
  return $status
}

# The export compares logits with those of the checkpoint, and refuses where they differ.
part_export() {
  local status=0 run words quantization model formats=(merged adapter)
  choose_model || return 1
  # The bundled model's tokenizer has no form in GGUF.
  [ -z "$QUICK" ] && [ "$TOKENIZER" != bundled:tiny ] && formats+=("gguf dtype=q8_0")
  for quantization in none nf4; do
    run=$(mktemp -d)
    python3 train.py "${model[@]}" "${common[@]}" showcase=none model.quantization=$quantization data.held_out=4 \
      training.max_steps=2 training.generation_tasks=0 hydra.run.dir="$run" >/dev/null || return 1
    for words in "${formats[@]}"; do
      echo "== $quantization, $words"
      # shellcheck disable=SC2086
      python3 -m arcft export checkpoint="$run" out="$(mktemp -d)/exported" format=$words || status=1
    done
  done
  return $status
}

# Each benchmark in small: whether it runs, no figures.
part_small() {
  local status=0 setups
  unsloth_too
  setups=$([ -n "$QUICK" ] && echo packing || echo arcft,groups,packing,compile,hf,unsloth,arcft_unsloth)
  python3 benchmarks/training.py $(with --quick) --model "$([ -n "$QUICK" ] && echo tiny || echo qwen2_5_0_5b)" \
    --tokenizer "$TOKENIZER" --steps 3 --warm-up 2 --setups "$setups" $(with --dtype float32) || status=1
  python3 benchmarks/decode.py --quick --parts "$([ -n "$QUICK" ] && echo steps || echo steps,reading,tasks)" || status=1
  return $status
}

part_ttft_4b() { ttft "${TTFT_WAYS:-d1,d4,d8,dauto}"; }
part_ttft_4b_loop() { ttft c; }
ttft() {
  python3 benchmarks/ttft.py $(with --quick) --model "$([ -n "$QUICK" ] && echo tiny || echo qwen3_4b)" --no-growth \
    --tasks "${TTFT_TASKS:-8}" --steps "${TTFT_STEPS:-32}" --ways "$1"
}

part_decode() {
  if [ -n "$QUICK" ]; then
    python3 benchmarks/decode.py --quick --parts steps,reading
  else
    python3 benchmarks/decode.py --no-tiny --architecture qwen2_5_0_5b --parts steps,reading --sides 10 --rows 1,8,32 \
      --repeats 2
  fi
}

part_training() { training qwen2_5_0_5b --rank 64; }
part_training_4b() { training qwen3_4b --rank 64 --steps 10 --warm-up 3 --setups "${TRAINING_SETUPS:-packing,unsloth,hf}"; }
training() {
  unsloth_too
  local model=$1
  shift
  if [ -n "$QUICK" ]; then
    python3 benchmarks/training.py --quick --dtype bfloat16 --setups packing,hf
  else
    python3 benchmarks/training.py --model "$model" --tokenizer "$TOKENIZER" --length 2048 --batch 8 "${trl[@]}" "$@"
  fi
}

part_memory() {
  local model
  choose_model || return 1
  python3 benchmarks/memory.py $(with --quick) "${model[@]}"
}

# The study is written setting by setting, so what was measured in time is there whatever happens.
part_speed() {
  local model words=('quantization=[none,nf4]' 'batch=[1,32]' 'input=[128,1024]' 'output=[32,128]' repeats=2 max_time=30s)
  if [ -n "$QUICK" ]; then
    model=tiny words=('batch=[1,2]' input=16 'output=[2,4]' repeats=1)
  else
    model=$(mktemp -d)/qwen2_5_0_5b
    mkdir "$model"
    random_base "$model" || return 1
  fi
  rm -rf "$OUT_FOLDER/speed"
  python3 -m arcft speed model="$model" "${words[@]}" budget=9h samples=1300 hydra.run.dir="$OUT_FOLDER/speed"
}

# A larger model of the bundled one's kind, 5.2 million weights, as long as there is time; its weights in bfloat16.
part_pretrain() {
  local work size=()
  work=$(mktemp -d)
  python3 scripts/make_tiny.py "$work/architecture" --hidden 224 --layers 8 || return 1
  if [ -n "$QUICK" ]; then
    size=(training.per_device_train_batch_size=4 training.num_workers=1 'training.curriculum=[]'
      training.max_seq_length=512 data.held_out=2 'data.disjoint_from=[]' data.demonstrations=2)
  fi
  python3 train.py experiment=pretrain_tiny_gpu data.path="${PAIRS:?a folder of pairs}" model.path="$work/architecture" \
    training.max_steps="${PRETRAIN_STEPS:-1000}" "${common[@]}" hydra.run.dir="$work/run" "${size[@]}" || return 1
  cp "$work/run/history.jsonl" "$OUT_FOLDER/pretrain_history.jsonl"
  python3 - "$work/run" "$OUT_FOLDER/pretrained.safetensors" <<'END'
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

last = max(Path(sys.argv[1]).glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
weights = load_file(last / "model.safetensors")
save_file({name: weight.to(torch.bfloat16) for name, weight in weights.items()}, sys.argv[2], {"format": "pt"})
END
}

if [ "${1:-}" = --part ]; then
  export OUT_FOLDER=$3
  "part_$2"
  exit
fi

out=${1:?benchmarks/gpu.sh OUT PART...}
shift
[ $# = 0 ] && set -- "${checks[@]}"
for part in "$@"; do
  if [ -z "${limit[$part]:-}" ]; then
    echo "there is no part $part; the parts are $(sed -n 's/^part_\([a-z0-9_]*\)().*/\1/p' benchmarks/gpu.sh | xargs)" >&2
    exit 2
  fi
done
mkdir -p "$out"
out=$(realpath "$out")
python3 -c 'import torch, transformers
print(torch.__version__, transformers.__version__, torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu")' |
  tee "$out/device.txt" || exit 1

# one PART: its output into a file, and its line.
one() {
  local begun=$SECONDS status=0 seconds=${limit[$1]}
  [ -n "$QUICK" ] && seconds=$((5 * seconds))
  timeout -k 5 "$seconds" "$BASH" benchmarks/gpu.sh --part "$1" "$out" >"$out/$1.txt" 2>&1 || status=$?
  grep '^{"benchmark"' "$out/$1.txt" >"$out/$1.json" || rm -f "$out/$1.json"
  echo "$1: $([ $status = 0 ] && echo done || echo "failed with $status") after $((SECONDS - begun)) s" |
    tee "$out/$1.line"
  return $status
}

failed=0
if [ -n "${TOGETHER:-}" ]; then
  pids=()
  for part in "$@"; do one "$part" & pids+=($!); done
  for pid in "${pids[@]}"; do wait "$pid" || failed=1; done
else
  for part in "$@"; do one "$part" || failed=1; done
fi
echo
for part in "$@"; do cat "$out/$part.line"; done
exit $failed
