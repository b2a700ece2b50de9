#!/usr/bin/env bash
# One run on all workers of a Cloud TPU slice: environment, start, follow, stop.
set -euo pipefail

usage() {
  cat <<'TEXT'
launch/tpu_pod.sh COMMAND --name TPU --zone ZONE [options] [-- flags of cacenet_jax.main]

  create-env   copies the committed files of this repository to all workers and installs what they need; once, and again
               after a change
  start        starts the run on all workers and returns; needs -- --config=FILE --workdir=DIR
  follow       shows the log of a worker as it grows; Ctrl-C ends the showing, not the run
  stop         ends the run on all workers; the same start continues from the newest checkpoint

  --name TPU        name of the TPU VM or slice
  --zone ZONE       its zone
  --project ID      its project (default: that of gcloud)
  --worker N        follow: whose log (default 0, which prints the losses)
  --python P        create-env: interpreter on the workers, 3.11 or later (default python3.11, installed if missing;
                    a path is not installed)
  --one-host        start: the slice has a single worker, nothing is to be joined
  --dry-run         show the commands, run nothing
  --help            this text

--workdir, --config.data.root and --config.data.dir lie in a folder that all workers share, for example a Filestore share
mounted on each; give them as absolute paths. create-env replaces the copied files, and refuses while a run is going on.

Example:
  launch/tpu_pod.sh create-env --name pod --zone us-east5-a
  launch/tpu_pod.sh start --name pod --zone us-east5-a -- --config=configs/market1501.py --workdir=/mnt/share/run \
      --config.data.root=/mnt/share/market1501 --config.data.dir=/mnt/share/prepared
  launch/tpu_pod.sh follow --name pod --zone us-east5-a
TEXT
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/common.sh
source "$root/launch/common.sh"

action="" name="" zone="" project="" worker=0 python=python3.11 distributed=(--distributed)
if (($#)) && [[ $1 != --* ]]; then action=$1 && shift; fi
while (($#)); do
  case $1 in
    --name | --zone | --project | --worker | --python)
      need_value "$1" $#
      case $1 in
        --name) name=$2 ;;
        --zone) zone=$2 ;;
        --project) project=$2 ;;
        --worker) worker=$2 ;;
        --python) python=$2 ;;
      esac
      shift 2
      ;;
    --one-host) distributed=() && shift ;;
    --dry-run) dry_run=true && shift ;;
    --help) usage && exit 0 ;;
    --) shift && break ;;
    *) fail "$1: found an option that is not known, expected those of --help, and flags of the run after --; correct it" ;;
  esac
done

case $action in
  create-env | start | follow | stop) ;;
  *) fail "command: found '$action', expected create-env, start, follow or stop; begin with one of them" ;;
esac
[[ -n $name ]] || fail "--name: not given, expected the name of the TPU; 'gcloud compute tpus tpu-vm list --zone ZONE' lists them"
[[ -n $zone ]] || fail "--zone: not given, expected the zone of the TPU, for example --zone us-east5-a"
[[ $worker =~ ^[0-9]+$ ]] || fail "--worker: found '$worker', expected a number from 0; correct it"
[[ $python =~ ^[A-Za-z0-9_./-]+$ ]] || fail "--python: found '$python', expected the name of an interpreter; correct it"
[[ $action == start || $# -eq 0 ]] || fail "$1: found a flag of the run, expected none for $action; leave it out"
need_tool gcloud "install the Google Cloud CLI and run 'gcloud auth login'"

where=("$name" "--zone=$zone")
[[ -z $project ]] || where+=("--project=$project")
home=cacenet_jax_run # a folder in the home of each worker

# on WORKER SCRIPT: runs a script on a worker or on all.
on() {
  run gcloud compute tpus tpu-vm ssh "${where[@]}" "--worker=$1" "--command=$2"
}

# What scripts on the workers begin with: whether the process of run.pid is the run's; a number can be another's by now.
# shellcheck disable=SC2016  # the workers' shell expands it
lives='lives() { [ -f run.pid ] && grep -qs cacenet_jax.main "/proc/$(cat run.pid)/cmdline"; }'
going_on="lives && { echo 'error: found a run on '\$(hostname)', expected none; stop it first' >&2; exit 2; }"

case $action in
  create-env)
    need_tool git "install git"
    [[ -z $(git -C "$root" status --porcelain 2>/dev/null || true) ]] ||
      echo "warning: found changes that are not committed, they are not copied; commit them and run create-env again" >&2
    apt="sudo apt-get -o DPkg::Lock::Timeout=300" # a new machine is often busy with updates of its own
    install="{ $apt update -q && $apt install -qy $python $python-venv; }"
    [[ $python != */* ]] ||
      install="{ echo 'error: --python: found no $python with ensurepip on '\$(hostname)', expected Python 3.11 or later; give another' >&2; exit 2; }"
    archive=$(mktemp "${TMPDIR:-/tmp}/cacenet_jax.XXXXXX")
    trap 'rm -f "$archive"' EXIT
    run git -C "$root" archive --format=tar.gz "--output=$archive" HEAD
    on all "mkdir -p $home && cd $home || exit; $lives
$going_on; true"
    run gcloud compute tpus tpu-vm scp "$archive" "$name:$home/code.tar.gz" "${where[@]:1}" --worker=all
    # Each folder is made beside the old one and takes its place when it is complete; prepared data goes with it.
    on all "set -e; cd $home; rm -rf code.new code.old; mkdir code.new; tar -xzf code.tar.gz -C code.new
$python -c 'import ensurepip' 2>/dev/null || $install
venv/bin/python -m pip --version >/dev/null 2>&1 || { rm -rf venv venv.new && $python -m venv venv.new && mv venv.new venv; }
venv/bin/python -m pip install --quiet --upgrade -r code.new/requirements.txt 'jax[tpu]'
[ ! -d code/data/prepared ] || { mkdir -p code.new/data && mv code/data/prepared code.new/data/; }
[ ! -d code ] || mv code code.old
mv code.new code; rm -rf code.old
venv/bin/python -c 'import jax; print(\"jax\", jax.__version__, \"is ready on\", __import__(\"socket\").gethostname())'"
    ;;
  start)
    need_run_flags "$@"
    [[ $workdir == /* ]] ||
      fail "--workdir: found $workdir, expected an absolute path in a folder that all workers share; for example --workdir=/mnt/share/run"
    for word in "$@"; do
      [[ $word != --config.data.dir=* || $word == --config.data.dir=/* ]] ||
        fail "$word: found a path in the copied files, expected an absolute one; for example --config.data.dir=/mnt/share/prepared"
    done
    if [[ -n $config && $config != /* ]] && command -v git >/dev/null; then
      git -C "$root" cat-file -e "HEAD:${config%%:*}" 2>/dev/null ||
        fail "--config: found no ${config%%:*} among the committed files, expected one that create-env copies; commit it and run create-env"
    fi
    command_line=$(quoted ../venv/bin/python -m cacenet_jax.main ${distributed[@]+"${distributed[@]}"} "$@")
    on all "cd $home 2>/dev/null && [ -d code ] && [ -x venv/bin/python ] || { echo 'error: no environment on '\$(hostname)'; run create-env first' >&2; exit 2; }
$lives
$going_on; cd code || exit
PYTHONUNBUFFERED=1 nohup setsid $command_line >>../run.log 2>&1 </dev/null & echo \$! >../run.pid"
    echo "follow it with: launch/tpu_pod.sh follow --name $name --zone $zone${project:+ --project $project}"
    ;;
  follow)
    on "$worker" "tail -n 100 -F $home/run.log"
    ;;
  stop)
    on all "cd $home 2>/dev/null || { echo 'no run on '\$(hostname); exit 0; }; $lives
lives || { echo 'no run on '\$(hostname); rm -f run.pid; exit 0; }
pid=\$(cat run.pid); kill -TERM -- -\$pid 2>/dev/null || true
for i in 1 2 3 4 5 6 7 8 9 10; do kill -0 -- -\$pid 2>/dev/null || break; sleep 1; done
kill -KILL -- -\$pid 2>/dev/null || true; rm -f run.pid; echo 'stopped on '\$(hostname)"
    ;;
esac
