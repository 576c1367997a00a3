#!/usr/bin/env bash
# A Slurm of one node on this machine, from Debian's packages, for the tests: scripts/slurm_for_tests.sh start|stop FOLDER
# `start` prints the environment that makes sbatch, srun and submitit find it: eval "$(scripts/slurm_for_tests.sh start FOLDER)"
# Installs slurmctld, slurmd, slurm-client and munge where they are missing; needs root. Everything else is in FOLDER.
set -euo pipefail

refuse() { echo "slurm_for_tests.sh: $*" >&2; exit 1; }

[ $# = 2 ] || refuse "usage: slurm_for_tests.sh start|stop FOLDER"
command=$1
mkdir -p "$2"
folder=$(cd "$2" && pwd)
export SLURM_CONF="$folder/slurm.conf"

install_packages() {
  local missing=()
  command -v slurmctld >/dev/null || missing+=(slurmctld)
  command -v slurmd >/dev/null || missing+=(slurmd)
  command -v sbatch >/dev/null || missing+=(slurm-client)
  command -v munged >/dev/null || missing+=(munge)
  [ ${#missing[@]} = 0 ] && return
  command -v apt-get >/dev/null || refuse "needs ${missing[*]}, and there is no apt-get to install them"
  { apt-get -qq update && apt-get -qq install -y --no-install-recommends "${missing[@]}"; } >"$folder/apt.log" 2>&1 ||
    refuse "can't install ${missing[*]}: $(tail -n 1 "$folder/apt.log")"
}

# free_ports N: N ports that nobody listens on.
free_ports() {
  python3 -c "
import socket
sockets = [socket.socket() for _ in range($1)]
for s in sockets: s.bind(('127.0.0.1', 0))
print(*(s.getsockname()[1] for s in sockets))"
}

write_config() {
  local control_port node_port
  read -r control_port node_port < <(free_ports 2)
  mkdir -p "$folder/state" "$folder/spool"
  cat >"$SLURM_CONF" <<CONFIG
ClusterName=tests
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=$control_port
SlurmdPort=$node_port
SlurmUser=root
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
ReturnToService=2
KillWait=20
NodeName=$(hostname -s) NodeAddr=127.0.0.1 CPUs=8 Gres=gpu:2 State=UNKNOWN
PartitionName=tests Nodes=ALL Default=YES MaxTime=INFINITE State=UP
SlurmdParameters=config_overrides
GresTypes=gpu
CONFIG
  touch "$folder/gpu0" "$folder/gpu1"
  echo "Name=gpu File=$folder/gpu[0-1]" >"$folder/gres.conf"
  printf 'CgroupPlugin=autodetect\nConstrainCores=no\n' >"$folder/cgroup.conf"
}

start() {
  [ "$(id -u)" = 0 ] || refuse "needs root"
  install_packages
  write_config
  head -c 1024 /dev/urandom >"$folder/munge.key"
  chmod 600 "$folder/munge.key"
  munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" --pid-file="$folder/munged.pid" \
    --log-file="$folder/munged.log" --seed-file="$folder/munge.seed" >&2
  slurmctld >&2
  slurmd >&2
  for _ in $(seq 100); do
    if sinfo -h -o %T 2>/dev/null | grep -q idle; then
      printf 'export SLURM_CONF=%q\n' "$SLURM_CONF"
      return
    fi
    sleep 0.1
  done
  stop
  refuse "the node doesn't come up: $(tail -qn 2 "$folder"/slurm*.log | tr '\n' ' ')"
}

stop() {
  local daemon
  scancel --user="$(id -un)" 2>/dev/null || true
  for _ in $(seq 200); do
    [ -z "$(squeue --noheader 2>/dev/null)" ] && break
    sleep 0.1
  done
  for daemon in slurmd slurmctld munged; do
    [ -f "$folder/$daemon.pid" ] && kill "$(cat "$folder/$daemon.pid")" 2>/dev/null
  done
  return 0
}

case $command in
  start) start ;;
  stop) stop ;;
  *) refuse "$command is neither start nor stop" ;;
esac
