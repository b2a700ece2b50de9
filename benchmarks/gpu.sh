#!/usr/bin/env bash
# Everything that wants measuring on a GPU, in one command and within ten minutes.
set -uo pipefail

usage() {
  cat <<'TEXT'
Usage: benchmarks/gpu.sh [--dry-run] [--limit=SECONDS] [--only=NAME[,NAME...]] [--help]

Runs every benchmark of speed on this machine's GPUs, each in its own process under a time limit, the most important
first. Their tables (text and json) and logs go to $OUT, by default benchmarks_out/. A benchmark that fails or runs out of
time does not stop the others; the list at the end says how each went, and the exit code is 1 if one failed.

  --dry-run   print the commands and do nothing
  --limit     seconds for all of them together (570); what would begin after that is left out and counts as failed
  --only      these alone: pair_stage torch_bfloat16 train_bfloat16 profile retrieval input_pipeline scaling torch_float32
              train_float32 parity; the training benchmark reads what PyTorch's left in $OUT

PYTHON chooses the interpreter (python3). It needs jax for CUDA, flax, optax, jaxtyping and ml-collections; with PyTorch the
same step is measured there too. What needs a library that is missing (PyTorch; grain, tensorflow-datasets, array_record) is
skipped and said so.
TEXT
}

dry_run=0
limit=570
only=""
for argument in "$@"; do
  case "$argument" in
    --help | -h) usage; exit 0 ;;
    --dry-run) dry_run=1 ;;
    --limit=*) limit="${argument#*=}" ;;
    --only=*) only=",${argument#*=}," ;;
    *) echo "gpu.sh: unknown argument $argument" >&2; usage >&2; exit 2 ;;
  esac
done
if ! [[ "$limit" =~ ^[0-9]+$ ]]; then
  echo "gpu.sh: --limit: found $limit, expected whole seconds" >&2
  exit 2
fi

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
python="${PYTHON:-python3}"
out="${OUT:-benchmarks_out}"
begin=$SECONDS
names=()
results=()
failed=0

export PYTHONUNBUFFERED=1
# Programs that several benchmarks share compile once.
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-${TMPDIR:-/tmp}/cacenet_jax_xla}"
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=1

has() { # has MODULE...: whether Python finds all of them, without importing them
  "$python" -c 'import sys, importlib.util as u; sys.exit(not all(u.find_spec(n) for n in sys.argv[1:]))' "$@"
}

note() { # note NAME RESULT
  names+=("$1")
  results+=("$2")
}

wanted() { [[ -z "$only" || "$only" == *",$1,"* ]]; }

measure() { # measure NAME SECONDS COMMAND...
  local name="$1" seconds="$2" left code started
  shift 2
  wanted "$name" || return 0
  if ((dry_run)); then
    echo "$name (at most $seconds s): $*"
    return 0
  fi
  left=$((limit - (SECONDS - begin)))
  if ((left < 5)); then
    note "$name" "FAILED: no time left"
    failed=1
    return 0
  fi
  ((seconds = seconds < left ? seconds : left))
  echo
  echo "== $name (at most $seconds s): $*"
  started=$SECONDS
  timeout --kill-after=5 "$seconds" "$@" 2>&1 | tee "$out/$name.log"
  code=${PIPESTATUS[0]}
  case "$code" in
    0) note "$name" "passed in $((SECONDS - started)) s" ;;
    124 | 137) note "$name" "FAILED: out of time after $seconds s"; failed=1 ;;
    *) note "$name" "FAILED with exit code $code after $((SECONDS - started)) s"; failed=1 ;;
  esac
}

skip() { # skip NAME REASON
  wanted "$1" || return 0
  if ((dry_run)); then echo "$1: skipped, $2"; else note "$1" "skipped: $2"; fi
}

if ((!dry_run)); then
  if ! reason="$("$python" -c 'import benchmarks.train_step, benchmarks.scaling' 2>&1)"; then
    echo "gpu.sh: $python cannot import the benchmarks: ${reason##*$'\n'}; install what is missing" >&2
    exit 1
  fi
  mkdir -p "$out" || exit 2
  nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader 2>/dev/null | tee "$out/gpu.txt"
  if ! "$python" -c 'import jax, sys; print(jax.devices()); sys.exit(jax.default_backend() == "cpu")'; then
    echo "gpu.sh: $python shows no accelerator to JAX; install jax[cuda13], or see each benchmark's own options for a CPU" >&2
    exit 1
  fi
fi

run() { local name="$1" seconds="$2"; shift 2; measure "$name" "$seconds" "$python" -m "$@"; }

torch=0
compare_bfloat16=()
compare_float32=()
if has torch; then
  torch=1
  compare_bfloat16=(--torch "$out/torch_step_bfloat16.json")
  compare_float32=(--torch "$out/torch_step_float32.json")
fi

run pair_stage 90 benchmarks.pair_stage --dtype=bfloat16 --check --literal-seconds=20 --out="$out"
if ((torch)); then
  ((dry_run)) || rm -f "$out"/torch_step_*.json # what an earlier run left is not this run's
  run torch_bfloat16 150 benchmarks.torch_step --dtype=bfloat16 --compile --limit=20 --out="$out"
else
  skip torch_bfloat16 "PyTorch is not installed"
fi
run train_bfloat16 260 benchmarks.train_step --dtype=bfloat16 --limit=40 --check --out="$out" \
  ${compare_bfloat16[@]+"${compare_bfloat16[@]}"}
run profile 60 benchmarks.train_step --dtype=bfloat16 --profile="$out/trace" --out="$out"
run retrieval 90 benchmarks.retrieval --market --check --out="$out"
if has grain tensorflow_datasets array_record; then
  run input_pipeline 60 benchmarks.input_pipeline --step --dtype=bfloat16 --repeats=3 --check --out="$out"
else
  skip input_pipeline "grain, tensorflow-datasets or array_record is not installed"
fi
run scaling 60 benchmarks.scaling --backbone=resnet50 --height=384 --width=128 --embed-dim=768 --dtype=bfloat16 \
  --mode=pmap --limit=15 --check --out="$out"
if ((torch)); then
  run torch_float32 60 benchmarks.torch_step --dtype=float32 --limit=15 --out="$out"
else
  skip torch_float32 "PyTorch is not installed"
fi
run train_float32 90 benchmarks.train_step --dtype=float32 --no-shares --limit=15 --out="$out" \
  ${compare_float32[@]+"${compare_float32[@]}"}
if ((torch)); then
  measure parity 60 env JAX_PLATFORMS=cpu "$python" -m benchmarks.torch_step --parity
else
  skip parity "PyTorch is not installed"
fi

if ((!dry_run)); then
  {
    echo
    echo "== after $((SECONDS - begin)) s; tables and logs in $out"
    for i in "${!names[@]}"; do
      printf '%-16s %s\n' "${names[$i]}" "${results[$i]}"
    done
  } | tee "$out/summary.txt"
fi
exit "$failed"
