"""The command line: fast, quiet about internals, and clear about errors."""

import gc
import importlib.metadata
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from contextlib import chdir
from pathlib import Path

import pytest

import gradsieve
import world
import wrong
from gradsieve import cli
from gradsieve.cli.shared import importing
from gradsieve.recipe.load import dump_recipe, load_recipe
from gradsieve.runs.folder import STAGE_NAMES


def call(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gradsieve", *arguments], capture_output=True, text=True, cwd=cwd
    )


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, gradsieve, gradsieve.cli\n"
        "from typer.testing import CliRunner\n"
        "result = CliRunner().invoke(gradsieve.cli.app, ['--help'])\n"
        "assert result.exit_code == 0, result.output\n"
        "heavy = {'torch', 'transformers', 'numpy', 'pyarrow', 'datasets', 'pydantic', 'rich'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_results_are_read_without_what_loads_models_and_rows() -> None:
    """`compare`, `verify` and `store` start in a third of the time."""
    code = (
        "import sys, gradsieve.analysis.results, gradsieve.runs.verify, gradsieve.store\n"
        "print(sorted({'transformers', 'peft', 'accelerate', 'datasets'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_imports_are_exempt_from_garbage_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    frozen: list[bool] = []
    monkeypatch.setattr(gc, "freeze", lambda: frozen.append(gc.isenabled()))
    with importing():  # torch is imported already, by other code
        assert gc.isenabled()
    monkeypatch.delitem(sys.modules, "torch")
    with importing():
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ImportError), importing():
        raise ImportError
    assert gc.isenabled()
    assert frozen == [False]


def test_help_is_quick() -> None:
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        assert call("--help").returncode == 0
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.3


def test_every_stage_is_a_command_with_an_example() -> None:
    listed = call("--help").stdout
    for name in ("run", *STAGE_NAMES, "explain", "demo"):
        assert f"  {name} " in listed
        assert f"Example: gradsieve {name} " in wrong.call(f"{name} --help").out


def test_version_and_short_help() -> None:
    assert call("--version").stdout == f"gradsieve {gradsieve.__version__}\n"
    assert gradsieve.__version__ == importlib.metadata.version("gradsieve")
    assert call("-h").stdout == call("--help").stdout
    assert call("store", "inspect", "-h").stdout == call("store", "inspect", "--help").stdout


def test_a_closed_pipe_ends_quietly() -> None:
    program = f"{sys.executable} -m gradsieve"
    for command in ("--help", "run --help", "init --model ''", "--version"):
        line = f"{program} {command} 2>&1 | true"
        done = subprocess.run(["sh", "-c", line], capture_output=True, text=True)
        assert done.stderr == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has it")
def test_a_result_that_cannot_be_written_is_one_message() -> None:
    line = f"{sys.executable} -m gradsieve --version > /dev/full"
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: The result cannot be written: No space left")


def test_ctrl_c_twice_is_quiet() -> None:
    code = (
        "import os, signal, sys, gradsieve.cli as cli\n"
        # Background processes of a shell start with SIGINT ignored.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "def twice(*_, **__):\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "    finally:\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "import gradsieve.store\n"
        "gradsieve.store.inspect = twice\n"
        "import atexit\n"
        "atexit.register(lambda: os.kill(os.getpid(), signal.SIGINT))\n"
        "sys.argv = ['gradsieve', 'store', 'inspect', 'x']\n"
        "cli.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has it")
def test_a_closed_terminal_ends_with_its_status() -> None:
    """The last line cannot be written, as to a terminal that is gone."""
    code = (
        "import os, signal, typer\n"
        "from pathlib import Path\n"
        "from gradsieve.cli import signals\n"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"  # nohup ignores it
        "try:\n"
        "    with signals.interruptible(Path('run')):\n"
        "        os.kill(os.getpid(), signal.SIGHUP)\n"
        "except typer.Exit as stopped:\n"
        "    print(stopped.exit_code)\n"
    )
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=full)
    assert done.stdout.split() == [b"129"]


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_that_is_swallowed_comes_again(name: str) -> None:
    code = (
        "import os, signal, sys, time, typer\n"
        "from pathlib import Path\n"
        "from gradsieve.cli import signals\n"
        "signals.AGAIN_SECONDS = 0.05\n"
        f"signal.signal(signal.{name}, signal.SIG_DFL)\n"  # nohup ignores SIGHUP
        "try:\n"
        "    with signals.interruptible(Path('run')):\n"
        "        try:\n"
        f"            os.kill(os.getpid(), signal.{name})\n"
        "        except BaseException:\n"  # as pydantic does while serializing
        "            pass\n"
        "        try:\n"
        "            time.sleep(20)\n"
        "        finally:\n"
        "            time.sleep(0.5)\n"  # cleanup is not interrupted
        "            print('closed')\n"
        "except typer.Exit as stopped:\n"
        "    time.sleep(0.5)\n"
        "    print(stopped.exit_code)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["closed", str(128 + signal.Signals[name])], done.stderr
    assert "kept in run" in done.stderr


def test_names_are_cleaned_wherever_they_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    name = "a\x1b[2Jb\u202ec\x9b1m"
    cli.echo(f"rows of {name}")
    cli.echo({"name": name, "é": 1})
    text, data = capsys.readouterr().out.splitlines()
    assert text == "rows of a\ufffd[2Jb\ufffdc\ufffd1m"
    assert data == r'{"name": "a\u001b[2Jb\u202ec\u009b1m", "é": 1}'
    assert json.loads(data)["name"] == name


RUN = ["run", "recipe.yaml", "--out"]


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["run", "none.yaml", "--out", "x"], 2, "No such file"),
        (["run", "none.yaml"], 2, "--out"),
        (["nonsense"], 2, "No such command"),
        (["run", "recipe.yaml", "--out", "x", "--from", "scores"], 2, "There is no stage scores"),
        (
            ["run", "recipe.yaml", "--out", "x", "--set", "warmup.epoch=2"],
            2,
            "did you mean `epochs`",
        ),
        (["features", "recipe.yaml", "--out", "x"], 1, "warmup is not finished"),
        (["run", "recipe.yaml", "--out", "x"], 1, "The file does not exist"),
        (["run", "recipe.yaml", "--out", "recipe.yaml"], 1, "cannot be written"),
        (["plan", "recipe.yaml"], 1, "problems, and nothing was started"),
        (["plan", "recipe.yaml", "--gpu", "H1000"], 2, "One of A10, A100-40GB, "),
        (["plan", "recipe.yaml", "--set", "model.nam=x"], 2, "did you mean `name`"),
        (["explain", "none", "--target", "t", "--id", "1"], 1, "not a run folder"),
        (["explain", ".", "--target", "t", "--id", "1"], 1, "not a run folder: it has no stage"),
        (["explain", "."], 2, "--id"),
        (["explain", "\x1b[2Jnone", "--id", "1"], 1, "\ufffd[2Jnone"),
        (["explain", os.fsdecode(b"n\xf6ne"), "--id", "1"], 1, "n\ufffdne"),
    ],
)
def test_mistakes_are_one_message(
    tmp_path: Path, arguments: list[str], status: int, said: str
) -> None:
    (tmp_path / "recipe.yaml").write_text(
        "model: {name: m}\npool: [{name: a, path: a.jsonl}]\ntargets: [{name: t, path: t.jsonl}]\n"
    )
    with chdir(tmp_path):
        done = wrong.call(shlex.join(arguments))
    assert done.status == status, done.err
    assert said in done.err
    assert "Traceback" not in done.err
    assert done.out == ""


def test_results_are_on_stdout_and_progress_on_stderr(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(dump_recipe(world.recipe(world.make(tmp_path / "inputs", rows=40))))
    done = call("run", str(recipe), "--out", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("mine, less: 2 rows, ")
    assert "features: done in" in done.stderr
    assert "Warning" not in done.stderr
    again = wrong.call(f"run {recipe} --out {tmp_path / 'run'} --quiet --json")
    assert again.err == ""
    assert json.loads(again.out)["stages"]["select"]["targets"]["mine"]["less"]["rows"] == 2


LOUD = """
import numpy as np
from gradsieve.methods.base import Scores

print("loaded")

class Loud:
    source, uses = "me", "data"

    def score(self, task):
        print("scoring")
        return {name: Scores(np.zeros(len(task), np.float32)) for name in task.targets}
"""


def test_what_an_own_method_prints_is_no_result(tmp_path: Path) -> None:
    (tmp_path / "loud.py").write_text(LOUD)
    data = world.make(tmp_path / "inputs", rows=40)
    recipe = world.recipe(data, score={"methods": [f"{tmp_path / 'loud.py'}:Loud"]})
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe))
    for command in ("plan", "run"):
        done = wrong.call(f"{command} {tmp_path / 'recipe.yaml'} --out {tmp_path / 'run'} --json")
        assert done.status == 0, done.err
        json.loads(done.out)
    assert "scoring" in done.err


def test_explain_is_plain_text_or_json(tmp_path: Path) -> None:
    recipe = world.recipe(world.make(tmp_path / "inputs", rows=40), score={"method": "random"})
    gradsieve.run(recipe, tmp_path / "run")
    asked = f"explain {tmp_path / 'run'} --target mine --id"
    done = wrong.call(f"{asked} 00001")
    assert done.status == 0, done.err
    assert done.out.startswith("one 00001, ")
    assert "user: " in done.out
    told = json.loads(wrong.call(f"{asked} 00001 --source one --method random --json").out)
    assert told["targets"]["mine"]["of"] == 40
    mistaken = wrong.call(f"{asked} 0001")
    assert (mistaken.status, mistaken.out) == (2, "")
    assert "Did you mean" in mistaken.err
    assert "Traceback" not in mistaken.err


def test_init_writes_a_recipe_or_copies_one(tmp_path: Path) -> None:
    listed = call("init", "--list", cwd=tmp_path)
    assert "qwen3-0.6b " in listed.stdout
    given = ("--model", "m", "--pool", "a.jsonl", "--pool", "b.jsonl", "--target", "t.jsonl")
    done = call("init", *given, cwd=tmp_path)
    assert done.stdout == "recipe.yaml written. Next: gradsieve plan recipe.yaml\n", done.stderr
    assert [source.name for source in load_recipe(tmp_path / "recipe.yaml").pool] == ["a", "b"]
    copied = call("init", "--from", "less-t-mistral-7b", cwd=tmp_path)
    assert copied.stdout.startswith("less-t-mistral-7b.yaml, llama2-7b.yaml written.")
    assert load_recipe(tmp_path / "less-t-mistral-7b.yaml").train is not None
    again = call("init", *given, cwd=tmp_path)
    assert (again.returncode, again.stdout) == (2, "")
    assert "there already" in again.stderr
    bare = call("init", cwd=tmp_path)
    assert bare.returncode == 2
    assert "Give --model" in bare.stderr
    empty = call("init", "--model", "", *given[2:], "--out", "empty.yaml", cwd=tmp_path)
    assert "Give --model" in empty.stderr
    both = call("init", "--from", "qwen3-0.6b", *given[:2], cwd=tmp_path)
    assert both.returncode == 2
    assert "--from, --model" in both.stderr
    assert not (tmp_path / "qwen3-0.6b.yaml").exists()


def test_shells_can_complete() -> None:
    assert "--install-completion" in call("--help").stdout
    code = "import sys, gradsieve.cli as cli; sys.argv[0] = 'gradsieve'; cli.main()"
    words = {"COMP_WORDS": "gradsieve ex", "COMP_CWORD": "1"}
    asked = {**os.environ, **words, "_GRADSIEVE_COMPLETE": "complete_bash"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=asked)
    assert done.stdout.split() == ["explain"], done.stderr
