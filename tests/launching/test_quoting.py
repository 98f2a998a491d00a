"""Hostile values reach the program as they are, and secrets reach no job."""

import json
import os
import subprocess
from pathlib import Path

import jobs
import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lgm.launching.launch import dry_run
from lgm.parsing import ConfigError

TEXT = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), min_size=1, max_size=40)
HOSTILE = ("$(touch hurt)", "`touch hurt`", "'; touch hurt; '", '"; touch hurt #', "a\nb: [c", "\\", "{{ x }}", "%j",
           "'", "é\u2028\x85\x1b\x7f", "~", "- x", "!!python/object:os.system", "yes", "1e3", " ", "#", "&amp;",
           "CONFIG_0\n}")
relaxed = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def examples(test):
    for text in HOSTILE:
        test = example(text)(test)
    return test


@pytest.fixture(scope="module")
def values():
    return jobs.read("configs/quickstart.py")[0]


def with_text(values, text):
    return {**values, "sampling": {**values["sampling"], "prompts": [text]}, text: text}


@pytest.fixture(scope="module")
def fakes(tmp_path_factory):
    """A PATH whose programs write down what they were told, one argument after another, and their variables."""
    folder = tmp_path_factory.mktemp("bin")
    note = f'#!/bin/bash\nprintf "%s\\0" "$@" > {folder}/said\nenv -0 > {folder}/env\n'
    for name, text in {"srun": note, "scontrol": "#!/bin/bash\necho JobState=RUNNING\n", "python3": note,
                       "sudo": "#!/bin/bash\n", "mountpoint": "#!/bin/bash\n",
                       "gcloud": "#!/bin/bash\necho secret-of-$5\n"}.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return folder


def run(fakes, script, *words, **variables):
    """(arguments, variables) with which a rendered script starts its program."""
    for name in ("said", "env"):
        (fakes / name).unlink(missing_ok=True)
    path = fakes / "script"
    path.write_text(script)
    done = subprocess.run(["bash", str(path), *words], cwd=fakes, capture_output=True, text=True,
                          env={"PATH": f"{fakes}:{os.environ['PATH']}", **variables})
    assert not (fakes / "hurt").exists(), done
    words = (fakes / "said").read_bytes().decode().split("\0")[:-1]
    pairs = (entry.partition("=") for entry in (fakes / "env").read_bytes().decode().split("\0") if entry)
    return words, {name: value for name, _, value in pairs}


@examples
@given(TEXT)
@relaxed
def test_slurm_passes_values_on_as_they_are(values, fakes, monkeypatch, text):
    place = str(fakes / "run")
    job = jobs.job("slurm-pyxis", with_text(values, text), monkeypatch, workdir=place, env={"HOSTILE": text},
                   slurm=dict(gpu="b200", container="pyxis", image=text, mounts=(text,), setup=()))
    (config, stored), (_, script) = job.files.items()
    words, env = run(fakes, script, SLURM_JOB_ID="1")
    assert env["HOSTILE"] == text and f"--container-image={text}" in words and f"--container-mounts={text}" in words
    assert words[-2:] == [f"--config={config}", f"--workdir={place}"]
    assert json.loads(stored)["sampling"]["prompts"] == [text] and json.loads(stored)[text] == text


@examples
@given(TEXT)
@relaxed
def test_yaml_holds_values_as_they_are(values, monkeypatch, text):
    job = jobs.job("gke-tpu", with_text(values, text), monkeypatch, env={"HOSTILE": text},
                   gke=dict(image=text, queue=text, service_account=text, work="pvc:x"))
    config, jobset = yaml.safe_load_all(next(iter(job.files.values())))
    stored = json.loads(config["data"]["config.json"])
    assert stored["sampling"]["prompts"] == [text] and stored[text] == text
    pod = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert pod["containers"][0]["image"] == text and pod["serviceAccountName"] == text
    assert {"name": "HOSTILE", "value": text} in pod["containers"][0]["env"]
    assert jobset["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == text


@examples
@given(TEXT)
@relaxed
def test_a_tpu_worker_trains_what_was_launched(values, fakes, monkeypatch, text):
    monkeypatch.setenv("HOME", str(fakes))
    home = fakes / "lgm-quickstart"
    subprocess.run(["rm", "-rf", home], check=True)
    (home / "venv/bin").mkdir(parents=True)
    (home / "venv/bin/python").symlink_to(fakes / "python3")
    job = jobs.job("tpu-vm", with_text(values, text), monkeypatch, env={"HOSTILE": text},
                   tpu_vm=dict(mount=str(fakes / "mnt")))
    script = next(text for path, text in job.files.items() if path.name == "worker.sh")
    path = fakes / "worker"
    path.write_text(script.replace("sleep 5", "sleep 0.05"))
    env = {"PATH": f"{fakes}:{os.environ['PATH']}", "HOME": str(fakes)}
    for part in ("start", "wait"):
        done = subprocess.run(["bash", path, part, *(["--only=3"] if part == "start" else [])], cwd=fakes, env=env,
                              capture_output=True, text=True)
        assert done.returncode == 0, done
    assert not list(fakes.rglob("hurt"))
    words = (fakes / "said").read_bytes().decode().split("\0")[:-1]
    told = (fakes / "env").read_bytes().decode().split("\0")
    assert words[:3] == ["-m", "lgm.cli", "train"] and words[-1] == "--only=3"
    assert f"HOSTILE={text}" in told and "HF_TOKEN=secret-of---secret=hugging-face-token" in told
    stored = json.loads((home / "config.json").read_text())
    assert stored["sampling"]["prompts"] == [text] and stored[text] == text


@examples
@given(TEXT)
@relaxed
def test_what_an_sbatch_line_cannot_hold_is_refused(values, monkeypatch, text):
    try:
        job = jobs.job("slurm", values, monkeypatch, slurm=dict(partition=text))
    except ConfigError as error:
        assert "site.slurm.partition" in str(error) and "\n" not in str(error)
    else:
        lines = list(job.files.values())[1].splitlines()
        assert [line for line in lines if "partition" in line] == [f"#SBATCH --partition={text}"]


@examples
@given(TEXT)
@relaxed
def test_a_name_becomes_one_that_clusters_take_or_is_refused(values, monkeypatch, text):
    try:
        job = jobs.job("gke-tpu", values, monkeypatch, name=text)
    except ConfigError as error:
        assert "config.name" in str(error) and "\n" not in str(error)
    else:
        name = list(yaml.safe_load_all(next(iter(job.files.values()))))[1]["metadata"]["name"]
        assert name[0].isalpha() and len(name) <= 40 and set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")


@pytest.mark.parametrize("engine", jobs.ENGINES)
@pytest.mark.parametrize(("where", "secret"), [
    ("config", "s3cr3t-v4lue-of-the-token"), ("env", "s3cr3t-v4lue-of-the-token"),
    ("config", "hf_" + "aB3" * 12), ("env", "ghp_" + "a1B2" * 9), ("config", "AKIA" + "Q7" * 8),
    ("env", "https://user:pass@host/x"), ("config", "-----BEGIN RSA PRIVATE KEY-----"),
])
def test_no_secret_reaches_a_job(values, monkeypatch, engine, where, secret):
    monkeypatch.setenv("MY_API_KEY", "s3cr3t-v4lue-of-the-token")
    given_ = with_text(values, secret) if where == "config" else values
    with pytest.raises(ConfigError) as refused:
        dry_run(jobs.job(engine, given_, monkeypatch, env={"HARMLESS": secret if where == "env" else "x"}))
    assert secret not in str(refused.value) and "\n" not in str(refused.value)


def test_secrets_are_named_and_never_shown(values, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "the-value-that-nobody-sees")
    for engine in jobs.ENGINES:
        assert "the-value-that-nobody-sees" not in dry_run(jobs.job(engine, values, monkeypatch))
    text = dry_run(jobs.job("gke-tpu", values, monkeypatch))
    assert 'name: "HF_TOKEN"' in text and "secretKeyRef" in text


def test_the_password_of_a_repository_stays_here(monkeypatch):
    from lgm.launching import tpu_vm

    answers = {"--show-toplevel": str(jobs.ROOT), "HEAD": "abc", "status": "", "remote": "https://me:t0ken@git.example/lgm"}
    monkeypatch.setattr(tpu_vm.subprocess, "run", lambda words, **k: subprocess.CompletedProcess(
        words, 0, next(v for key, v in answers.items() if key in words), ""))
    assert tpu_vm._code("") == ("abc", "https://git.example/lgm")
    answers["status"] = " M lgm/cli.py"
    with pytest.raises(ConfigError, match="not committed"):
        tpu_vm._code("")
    answers["--show-toplevel"] = str(jobs.ROOT.parent)  # another project's repository, in which lgm is installed
    assert tpu_vm._code("") == ("", "")


def test_templates_have_no_syntax_errors(values, monkeypatch):
    for engine in jobs.ENGINES:
        for path, text in jobs.job(engine, values, monkeypatch).files.items():
            if Path(path).suffix in (".sh", ".sbatch"):
                subprocess.run(["bash", "-n"], input=text, text=True, check=True)
