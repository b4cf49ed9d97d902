"""The public API: its names, that importing it is cheap, and that its examples run."""

import doctest
import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)

import gradsieve
import tiny
import world


def test_every_name_is_there_and_documented() -> None:
    assert gradsieve.__all__ == sorted(gradsieve.__all__)
    for name in gradsieve.__all__:
        assert getattr(gradsieve, name).__doc__, name
        assert name in dir(gradsieve)
    with pytest.raises(AttributeError, match="no attribute 'selects'"):
        gradsieve.selects  # noqa: B018


def test_no_module_hides_a_name_of_the_api() -> None:
    """A module `gradsieve/explain.py` would replace the function once something imports it."""
    modules = {path.stem for path in Path(gradsieve.__file__).parent.iterdir()}
    assert not modules & set(gradsieve.__all__)


def test_types_are_published() -> None:
    assert (Path(gradsieve.__file__).parent / "py.typed").is_file()


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, gradsieve; print({'torch', 'pydantic', 'datasets'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr


@pytest.mark.parametrize("name", gradsieve.__all__)
def test_a_name_can_be_had_alone(name: str) -> None:
    home = importlib.import_module(getattr(gradsieve, name).__module__)
    assert getattr(home, name) is getattr(gradsieve, name)


@pytest.mark.parametrize("name", ["KeepMoments", "explain", "select"])
def test_examples_of_docstrings_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = doctest.DocTestFinder(recurse=False).find(
        getattr(gradsieve, name), name, globs=_notebook(tmp_path, name)
    )
    told: list[str] = []
    for test in found:
        assert test.examples
        doctest.DocTestRunner().run(test, out=told.append)
    assert not told, "".join(told)


class QuietTrainer(Trainer):
    """A Trainer without the log output that an example would have to include."""

    def train(self, *given: Any, **named: Any) -> Any:
        self.remove_callback(PrinterCallback)
        return super().train(*given, **named)


def _notebook(folder: Path, name: str) -> dict[str, Any]:
    """The objects that a user has when an example starts."""
    data = world.make(folder / "inputs", rows=40)
    model = AutoModelForCausalLM.from_pretrained(data["model"]["name"])
    rows = [{k: v[0] for k, v in tiny.batch((12,), seed=seed).items()} for seed in range(6)]
    if name == "explain":
        data["targets"][0]["name"] = "legal"
        gradsieve.run(world.recipe(data), "runs/first")
    made: dict[str, Any] = {
        "model": model,
        "tokenizer": AutoTokenizer.from_pretrained(data["model"]["name"]),
        "pool": data["pool"][0]["path"],
        "examples": data["targets"][0]["path"],
        "rows": rows,
        "Trainer": QuietTrainer,
    }
    if name == "KeepMoments":
        from peft import LoraConfig, get_peft_model

        made["peft_model"] = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
        made["arguments"] = TrainingArguments(
            "out",
            num_train_epochs=2,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
    return made
