#!/usr/bin/env bash
# One run on a GKE cluster: gke_jobset.yaml filled in and given to kubectl.
set -euo pipefail

usage() {
  cat <<'TEXT'
launch/xpk.sh [options] -- --config=FILE --workdir=DIR [flags of cacenet_jax.main]

Fills in launch/gke_jobset.yaml and submits it with kubectl; the tool xpk is not needed. The cluster has the JobSet controller.

  --name NAME         name of the run in the cluster, lower-case letters, digits and dashes
  --image IMAGE       container image with this repository as its working folder and its requirements installed,
                      with jax[tpu] or jax[cuda13]
  --hosts N           hosts of the slice, or GPU nodes (one process each)
  --accelerator TYPE  GKE's name: tpu-v5p-slice, tpu-v5-lite-podslice, tpu-v6e-slice, nvidia-h100-80gb, ...
  --topology T        TPU: of the slice, for example 2x2x4
  --chips N           TPU chips or GPUs of a host (default: 4 for TPU, 8 for GPU)
  --claim NAME        volume claim, ReadWriteMany, mounted at /share for data, workdir and compiled programs (default
                      cacenet-share)
  --restarts N        how often a run that lost a pod starts again (default 3)
  --dry-run           show the manifest and the command, submit nothing
  --help              this text

Example:
  launch/xpk.sh --name cacenet --image IMAGE --hosts 4 --accelerator tpu-v5p-slice --topology 2x2x4 -- \
      --config=configs/market1501.py --workdir=/share/run --config.data.root=/share/market1501 --config.data.dir=/share/prepared
TEXT
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/common.sh
source "$root/launch/common.sh"

name="" image="" hosts="" accelerator="" topology="" chips="" claim=cacenet-share restarts=3
while (($#)); do
  case $1 in
    --name | --image | --hosts | --accelerator | --topology | --chips | --claim | --restarts)
      need_value "$1" $#
      case $1 in
        --name) name=$2 ;;
        --image) image=$2 ;;
        --hosts) hosts=$2 ;;
        --accelerator) accelerator=$2 ;;
        --topology) topology=$2 ;;
        --chips) chips=$2 ;;
        --claim) claim=$2 ;;
        --restarts) restarts=$2 ;;
      esac
      shift 2
      ;;
    --dry-run) dry_run=true && shift ;;
    --help) usage && exit 0 ;;
    --) shift && break ;;
    *) fail "$1: found an option that is not known, expected those of --help, and flags of the run after --; correct it" ;;
  esac
done

# Names of pods are the run's with -workers-0-N-xxxxx, at most 63 characters.
[[ $name =~ ^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$ ]] ||
  fail "--name: found '$name', expected up to 40 lower-case letters, digits and dashes, a letter first; choose another"
[[ $image =~ ^[A-Za-z0-9][A-Za-z0-9._/:@-]*$ ]] || fail "--image: found '$image', expected a container image; build one from this repository"
need_run_flags "$@"

[[ $workdir == /share/* ]] || fail "--workdir: found $workdir, expected a folder below /share, which pods keep; for example --workdir=/share/run"
[[ $config == /* ]] || need_file "$root"
need_whole --hosts "$hosts"
[[ $restarts =~ ^[0-9]{1,4}$ ]] || fail "--restarts: found '$restarts', expected a whole number; correct it"
[[ $claim =~ ^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$ ]] || fail "--claim: found '$claim', expected the name of a volume claim; correct it"
command_line=$(quoted python -m cacenet_jax.main) env_indent='                    '
case $accelerator in
  tpu-*)
    # On TPU the process ids are those of the runtime, which JAX reads; flags of ours could contradict them.
    [[ $topology =~ ^[1-9][0-9]{0,3}(x[1-9][0-9]{0,3}){1,2}$ ]] || fail "--topology: found '$topology', expected for example 2x2x4; give that of the slice"
    resource=google.com/tpu chips=${chips:-4}
    need_whole --chips "$chips"
    total=$((${topology//x/ * }))
    ((total == hosts * chips)) ||
      fail "--hosts x --chips: found $hosts x $chips, expected the $total chips of --topology $topology; correct one of them"
    selector="{cloud.google.com/gke-tpu-accelerator: $accelerator, cloud.google.com/gke-tpu-topology: $topology}"
    device_env="{name: JAX_PLATFORMS, value: tpu}"
    ((hosts == 1)) || command_line+=" --distributed"
    ;;
  nvidia-*)
    [[ -z $topology ]] || fail "--topology: found $topology with GPUs, expected it for TPU alone; leave it out"
    resource=nvidia.com/gpu chips=${chips:-8}
    need_whole --chips "$chips"
    selector="{cloud.google.com/gke-accelerator: $accelerator}"
    # The driver's libraries, where GKE mounts them.
    device_env="{name: JAX_PLATFORMS, value: cuda}"$'\n'"$env_indent- {name: LD_LIBRARY_PATH, value: /usr/local/nvidia/lib64}"
    ((hosts == 1)) ||
      command_line+=" --distributed --coordinator=$name-workers-0-0.$name:8476 --num_processes=$hosts --process_id=\$JOB_COMPLETION_INDEX"
    ;;
  *) fail "--accelerator: found '$accelerator', expected GKE's name, tpu-... or nvidia-...; see --help" ;;
esac
[[ $accelerator =~ ^[a-z0-9-]+$ ]] || fail "--accelerator: found '$accelerator', expected lower-case letters, digits and dashes; correct it"
command_line+=" $(quoted "$@")"

# A block of YAML text: nothing in a command needs to be quoted for it.
indent='                      '
manifest=$(<"$root/launch/gke_jobset.yaml")
fill() { manifest=${manifest//"\${$1}"/"$2"}; }
fill NAME "$name"
fill RESTARTS "$restarts"
fill HOSTS "$hosts"
fill NODE_SELECTOR "$selector"
fill RESOURCE "$resource"
fill CHIPS "$chips"
fill IMAGE "$image"
fill CLAIM "$claim"
fill DEVICE_ENV "$device_env"
fill COMMAND "|-"$'\n'"$indent$command_line"

echo "$manifest"
if [[ $dry_run == false ]]; then
  need_tool kubectl "install it and run 'gcloud container clusters get-credentials CLUSTER'"
  kubectl get crd jobsets.jobset.x-k8s.io >/dev/null 2>&1 ||
    fail "cluster: found no JobSet (jobsets.jobset.x-k8s.io), expected its controller; install JobSet, and check 'kubectl config current-context'"
  kubectl get pvc "$claim" >/dev/null 2>&1 ||
    fail "--claim: found no volume claim $claim in the cluster, expected one with ReadWriteMany; create it or name another"
  ! kubectl get jobset "$name" >/dev/null 2>&1 ||
    fail "--name: found a jobset $name in the cluster, expected none; 'kubectl delete jobset $name' first, or choose another name"
fi
echo "+ kubectl create -f -"
[[ $dry_run == true ]] || kubectl create -f - <<<"$manifest"
echo "follow it with: kubectl logs --follow --selector=jobset.sigs.k8s.io/jobset-name=$name --prefix --max-log-requests=$hosts"
echo "stop it with: kubectl delete jobset $name"
