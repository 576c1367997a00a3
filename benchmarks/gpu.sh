#!/usr/bin/env bash
# Everything that needs a GPU, in one go: benchmarks/gpu.sh [OUT [PART...]]
# Writes the tests' output, each benchmark's table and its JSON line into OUT (default: $OUT, else ./gpu-results).
# All takes about an hour on an H200, most of it for the ways that benchmarks/ttft.py compares arcft with. Where the
# time is limited, name parts of what is below: benchmarks/gpu.sh OUT tests train; benchmarks/gpu.sh OUT ttft_qwen3_4b
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-${OUT:-gpu-results}}
shift $(($# > 0))
parts=("$@")
mkdir -p "$out"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
failed=0

# wanted PART: whether it was named, or none was.
wanted() {
  [ ${#parts[@]} = 0 ] || [[ " ${parts[*]} " == *" $1 "* ]]
}

# benchmark NAME SCRIPT ARGUMENTS: its output in NAME.txt, its figures in NAME.json.
benchmark() {
  local name=$1 script=$2
  shift 2
  wanted "$name" || return 0
  python3 "benchmarks/$script" "$@" 2>&1 | tee "$out/$name.txt" || failed=1
  tail -n 1 "$out/$name.txt" >"$out/$name.json"
}

python3 -c 'import torch; print(torch.__version__, torch.cuda.get_device_name())' | tee "$out/device.txt" || exit 1

if wanted tests; then
  python3 -m pytest -q -m gpu -rs 2>&1 | tee "$out/tests.txt" || failed=1
fi

# The main job on the GPU: same command, another device.
if wanted train; then
  for overrides in "" "training.dtype=float16" "model.seed=1 training.dtype=float32"; do
    # shellcheck disable=SC2086 # several words on purpose
    python3 train.py preview=false tracking=none training.max_steps=100 hydra.run.dir="$(mktemp -d)" $overrides 2>&1 |
      tee -a "$out/train.txt" || failed=1
  done
fi

benchmark data_pipeline data_pipeline.py --quick
benchmark ttft_qwen2_5_0_5b ttft.py --model qwen2_5_0_5b --no-growth
# Ours first: what is known of the others is of less use.
benchmark ttft_qwen3_4b ttft.py --model qwen3_4b --no-growth --ways d1,d4,d8,dauto
benchmark ttft_qwen3_4b_others ttft.py --model qwen3_4b --no-growth --ways a,b,c,d1
benchmark ttft_tiny ttft.py --quick
benchmark kills kills.py --quick
benchmark decode decode.py
exit $failed
