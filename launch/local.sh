#!/usr/bin/env bash
# Several processes of one run on this machine, joined over loopback.
set -euo pipefail

usage() {
  cat <<'TEXT'
launch/local.sh [options] [--] --config=FILE --workdir=DIR [flags of cacenet_jax.main]

Starts one run as several processes on this machine, joined over loopback, each with devices of its own.
Output lines begin with the number of the process. When one process fails, all end; Ctrl-C ends all,
and the same command continues from the newest checkpoint.

  --processes N            how many (default 2)
  --devices-per-process D  devices of each (default 1)
  --platform cpu|cuda      what the devices are (default cpu; cuda gives process I its own D of the GPUs)
  --port P                 port on 127.0.0.1 where they meet (default: a free one)
  --dry-run                show the commands, run nothing
  --help                   this text

PYTHON names the interpreter (default: python, or python3).

Example: launch/local.sh --processes 2 -- --config=configs/synthetic.py --workdir=workdirs/two
TEXT
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/common.sh
source "$root/launch/common.sh"

processes=2 devices=1 platform=cpu port="" dry_run=false
while (($#)); do
  case $1 in
    --processes | --devices-per-process | --platform | --port)
      need_value "$1" $#
      case $1 in
        --processes) processes=$2 ;;
        --devices-per-process) devices=$2 ;;
        --platform) platform=$2 ;;
        --port) port=$2 ;;
      esac
      shift 2
      ;;
    --dry-run) dry_run=true && shift ;;
    --help) usage && exit 0 ;;
    --) shift && break ;;
    *) break ;;
  esac
done

need_whole --processes "$processes"
need_whole --devices-per-process "$devices"
[[ $platform == cpu || $platform == cuda ]] || fail "--platform: found '$platform', expected cpu or cuda; choose one"
if [[ -n $port ]]; then
  need_whole --port "$port"
  ((port < 65536)) || fail "--port: found $port, expected 1 to 65535; choose another"
fi
need_run_flags "$@"
need_file "$PWD"
python=${PYTHON:-$(command -v python || command -v python3 || true)}
command -v "${python:-nothing}" >/dev/null ||
  fail "PYTHON: found '$python', expected a Python interpreter; set PYTHON, for example PYTHON=.venv/bin/python"
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
if [[ $dry_run == false ]]; then
  "$python" -c 'import jax' 2>/dev/null ||
    fail "$python: found no jax in it, expected an environment with requirements.txt; set PYTHON, for example PYTHON=.venv/bin/python"
  if [[ $platform == cuda ]]; then
    need_tool nvidia-smi "install the NVIDIA driver or take --platform cpu"
    gpus=$(nvidia-smi --list-gpus | wc -l)
    ((gpus >= processes * devices)) ||
      fail "--processes x --devices-per-process: found $gpus GPUs, expected $((processes * devices)); lower one of them"
  fi
fi
[[ -n $port ]] || port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')

# environment I: the variables of process I, one a line.
environment() {
  echo "JAX_PLATFORMS=$platform"
  if [[ $platform == cpu ]]; then
    echo "JAX_NUM_CPU_DEVICES=$devices"
  else
    echo "CUDA_VISIBLE_DEVICES=$(seq -s, $(($1 * devices)) $((($1 + 1) * devices - 1)))"
  fi
}

# prefix I: every line with the number of its process; it outlives the signal that ends the process.
prefix() {
  trap '' INT TERM
  local line
  while IFS= read -r line || [[ -n $line ]]; do printf '[%s] %s\n' "$1" "$line"; done
}

set -m # each process in a group of its own: a Ctrl-C reaches this script alone, which passes it on
pids=() codes=()
for ((i = 0; i < processes; i++)); do
  words=(env)
  while IFS= read -r line; do words+=("$line"); done < <(environment "$i")
  words+=("$python" -m cacenet_jax.main --distributed "--coordinator=127.0.0.1:$port" "--num_processes=$processes"
    "--process_id=$i" "$@")
  echo "+ $(quoted "${words[@]}")"
  if [[ $dry_run == false ]]; then
    "${words[@]}" > >(prefix "$i") 2> >(prefix "$i" >&2) &
    pids+=($!)
  fi
done
[[ $dry_run == false ]] || exit 0

# signal_all NAME: to every process that still runs, and what it started.
signal_all() {
  local i
  for i in "${!pids[@]}"; do
    [[ -n ${codes[i]:-} ]] || kill -s "$1" -- "-${pids[i]}" 2>/dev/null || true
  done
}

interrupted=false
trap 'interrupted=true; signal_all INT' INT TERM
trap 'signal_all KILL' EXIT
code=0 ended=0 patience=-1 # patience: tenths of a second that the others have left after the first failure
while ((ended < processes)); do
  sleep 0.1 || true
  for i in "${!pids[@]}"; do
    if [[ -z ${codes[i]:-} ]] && ! kill -0 "${pids[i]}" 2>/dev/null; then
      wait "${pids[i]}" && codes[i]=0 || codes[i]=$?
      ended=$((ended + 1))
      if ((codes[i] && !code)); then
        code=${codes[i]}
        patience=150 # they hear of the failure from the process that failed, and say so
        [[ $interrupted == true ]] || echo "error: process $i ended with exit code $code; the others are ended too" >&2
      fi
    fi
  done
  [[ $interrupted == false ]] || ((patience >= 0)) || patience=150
  if ((patience == 50)); then signal_all TERM; fi
  if ((patience == 0)); then signal_all KILL; fi
  ((patience < 0)) || patience=$((patience > 0 ? patience - 1 : 0))
done
sleep 0.2 # the last lines are still on their way through prefix
exit "$code"
