"""The manifest that launch/xpk.sh fills in: one that a cluster takes, submitted under a free name."""

import json
import os
import shlex
from pathlib import Path

import jsonschema
import pytest
import yaml
from launching import GPU, SHARE_RUN, TPU, launch


def manifest(*words: str) -> dict:
    done = launch("xpk.sh", "--dry-run", *words)
    assert done.returncode == 0, done.stderr
    text = done.stdout.split("\n+ kubectl")[0]
    found = yaml.safe_load(text)
    jsonschema.Draft202012Validator(json.loads((Path(__file__).parent / "jobset.schema.json").read_text())).validate(
        found
    )
    return found


def pods(found: dict) -> dict:
    return found["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]


def test_the_manifest_for_gpus_numbers_the_processes_itself():
    awkward = '--config.data.root=/share/it\'s "1"; $(x) ${NAME} #: \\'
    found = manifest(*GPU, "--", *SHARE_RUN, awkward)
    job, pod = found["spec"]["replicatedJobs"][0]["template"]["spec"], pods(found)
    assert job["parallelism"] == job["completions"] == 2 and job["completionMode"] == "Indexed"
    [container] = pod["containers"]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 8}
    assert pod["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"}
    text = container["args"][0].replace("$JOB_COMPLETION_INDEX", "1")
    assert shlex.split(text) == [
        "python", "-m", "cacenet_jax.main", "--distributed", "--coordinator=cacenet-workers-0-0.cacenet:8476",
        "--num_processes=2", "--process_id=1", *SHARE_RUN, awkward,
    ]  # fmt: skip
    variables = {variable["name"]: variable["value"] for variable in container["env"]}
    assert variables["JAX_PLATFORMS"] == "cuda" and variables["LD_LIBRARY_PATH"] == "/usr/local/nvidia/lib64"
    assert found["spec"]["network"]["subdomain"] == "cacenet"  # what the coordinator's name ends with


def test_the_manifest_for_tpus_leaves_the_numbers_to_the_runtime():
    found = manifest(*TPU, "--", *SHARE_RUN)
    [container] = pods(found)["containers"]
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    variables = {variable["name"]: variable["value"] for variable in container["env"]}
    assert variables["JAX_PLATFORMS"] == "tpu" and "LD_LIBRARY_PATH" not in variables
    assert pods(found)["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "2x2x4"
    assert shlex.split(container["args"][0]) == ["python", "-m", "cacenet_jax.main", "--distributed", *SHARE_RUN]


def test_the_schema_refuses_misspelt_fields():
    found = manifest(*GPU, "--", *SHARE_RUN)
    found["spec"]["replicatedJobs"][0]["template"]["spec"]["paralelism"] = 2
    schema = json.loads((Path(__file__).parent / "jobset.schema.json").read_text())
    with pytest.raises(jsonschema.ValidationError, match="paralelism"):
        jsonschema.validate(found, schema)


KUBECTL = """#!/usr/bin/env bash
# A cluster with the controller, the claim and the run `old`.
echo "$*" >>"$CALLS"
case "$*" in "get jobset "*) [[ $3 == old ]] ;; "create -f -") cat >"$CALLS.yaml" ;; get*) ;; *) exit 1 ;; esac
"""


def test_xpk_creates_a_run_and_refuses_the_name_of_another(tmp_path):
    """`kubectl apply` of a run that has finished would change nothing and report success."""
    (tmp_path / "kubectl").write_text(KUBECTL)
    (tmp_path / "kubectl").chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "CALLS": str(tmp_path / "calls")}
    done = launch("xpk.sh", *GPU, "--", *SHARE_RUN, env=env)
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load((tmp_path / "calls.yaml").read_text())["metadata"]["name"] == "cacenet"
    assert "--max-log-requests=2" in done.stdout
    (tmp_path / "calls").unlink()
    done = launch("xpk.sh", *GPU, "--name", "old", "--", *SHARE_RUN, env=env)
    assert done.returncode == 2 and "'kubectl delete jobset old' first" in done.stderr
    assert "create" not in (tmp_path / "calls").read_text()


@pytest.mark.parametrize("of", ["GPU", "TPU"])
def test_a_single_host_has_nothing_to_join(of):
    words = (*GPU, "--hosts", "1") if of == "GPU" else (*TPU, "--hosts", "1", "--topology", "2x2x1")
    [container] = pods(manifest(*words, "--", *SHARE_RUN))["containers"]
    assert shlex.split(container["args"][0]) == ["python", "-m", "cacenet_jax.main", *SHARE_RUN]
