"""The files of recipes/cluster: their formats, and the SLURM scripts run on this machine."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import gradsieve
import pages
import world
from gradsieve.recipe.load import dump_recipe, load_recipe
from gradsieve.runs.folder import RunFolder

FOLDER = pages.ROOT / "recipes" / "cluster"
SCRIPTS = ("slurm.sbatch", "slurm-array.sh")

SHIM = """#!/bin/bash
# Runs what SLURM would run, at once: --wrap's command, for each number of --array.
count=0
for argument in "$@"; do
  case "$argument" in
    --wrap=*) body=${argument#--wrap=} ;;
    --array=1-*) count=${argument#--array=1-} ;;
  esac
done
echo "$*" >>"$SHIM_LOG"
if [ "$count" -eq 0 ]; then
  bash -c "$body" >&2
else
  for number in $(seq "$count"); do
    SLURM_ARRAY_TASK_ID=$number SLURM_ARRAY_TASK_COUNT=$count bash -c "$body" >&2 &
  done
  wait
fi
echo 17
"""


@pytest.mark.parametrize("name", SCRIPTS)
def test_shell(name: str) -> None:
    subprocess.run(["bash", "-n", str(FOLDER / name)], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", str(FOLDER / name)], check=True)


def test_launcher() -> None:
    ray = pytest.importorskip("ray")
    jsonschema = pytest.importorskip("jsonschema")
    schema = Path(ray.__file__).parent / "autoscaler" / "ray-schema.json"
    found = yaml.safe_load((FOLDER / "autoscaling.yaml").read_text())
    jsonschema.validate(found, json.loads(schema.read_text()))


def test_kuberay() -> None:
    job = yaml.safe_load((FOLDER / "kuberay-rayjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert shlex.split(job["spec"]["entrypoint"])[:2] == ["gradsieve", "run"]
    cluster = job["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    pods = [group["template"]["spec"] for group in groups]
    images = {pod["containers"][0]["image"] for pod in pods}
    assert len(images) == 1  # the same version everywhere
    for pod in pods:  # the volume that the pods of a run share
        volume = pod["volumes"][0]
        assert volume["name"] == pod["containers"][0]["volumeMounts"][0]["name"]
        assert "persistentVolumeClaim" in volume


def environment(tmp_path: Path, **shims: str) -> dict[str, str]:
    """An environment with mock SLURM commands, and this interpreter's gradsieve and Ray."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in shims.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    here = os.pathsep.join([str(folder), str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**os.environ, "PATH": here, "SHIM_LOG": str(tmp_path / "shim.log")}


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Any]:
    return world.make(tmp_path / "inputs")


@pytest.mark.cluster
def test_job_array(inputs: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(dump_recipe(world.recipe(inputs)))
    found = {"RECIPE": str(tmp_path / "recipe.yaml"), "RUN": str(tmp_path / "run"), "SHARES": "2"}
    subprocess.run(
        [str(FOLDER / "slurm-array.sh")],
        check=True,
        env={**environment(tmp_path, sbatch=SHIM), **found},
    )
    submitted = (tmp_path / "shim.log").read_text().splitlines()
    assert ["--dependency=afterok:17" in line for line in submitted] == [False, True, False]
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "share 1 of 2" in log or "share 2 of 2" in log  # whichever process finished first
    plain = gradsieve.run(load_recipe(tmp_path / "recipe.yaml"), tmp_path / "plain")
    assert world.results(RunFolder(tmp_path / "run")) == world.results(plain)


@pytest.mark.cluster
def test_sbatch(inputs: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("ray")
    one_thread = world.recipe(inputs, engine={"cpus_per_worker": 1})  # the same as in this process
    (tmp_path / "recipe.yaml").write_text(dump_recipe(one_thread))
    plain = gradsieve.run(load_recipe(tmp_path / "recipe.yaml"), tmp_path / "plain")
    found = {
        "RECIPE": str(tmp_path / "recipe.yaml"),
        "RUN": str(tmp_path / "run"),
        "RAY_PORT": "6399",
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_JOB_ID": "17",
    }
    subprocess.run(
        ["bash", str(FOLDER / "slurm.sbatch")],
        check=True,
        env={**environment(tmp_path, srun="", scontrol=""), **found},
    )
    assert world.results(RunFolder(tmp_path / "run")) == world.results(plain)
    assert "engine: ray, because RAY_ADDRESS is" in (tmp_path / "run" / "log.txt").read_text()
