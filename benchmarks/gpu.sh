#!/usr/bin/env bash
# Everything that needs a GPU, in one go: benchmarks/gpu.sh [OUT]
# Writes the tests' output, each benchmark's table and its JSON line into OUT (default: $OUT, else ./gpu-results).
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-${OUT:-gpu-results}}
mkdir -p "$out"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
failed=0

python3 -c 'import torch; print(torch.__version__, torch.cuda.get_device_name())' | tee "$out/device.txt" || exit 1

python3 -m pytest -q -m gpu -rs 2>&1 | tee "$out/tests.txt" || failed=1

# The main job on the GPU: same command, another device.
for overrides in "" "training.dtype=float16" "model.seed=1 training.dtype=float32"; do
  # shellcheck disable=SC2086 # several words on purpose
  python3 train.py preview=false tracking=none training.max_steps=100 hydra.run.dir="$(mktemp -d)" $overrides 2>&1 |
    tee -a "$out/train.txt" || failed=1
done

python3 benchmarks/data_pipeline.py --quick 2>&1 | tee "$out/data_pipeline.txt" || failed=1
tail -n 1 "$out/data_pipeline.txt" >"$out/data_pipeline.json"
exit $failed
