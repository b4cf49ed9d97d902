"""Every code block of README.md and docs/ runs; tests/pages.py runs them.

The tutorial and README.md each run once; every other page starts with the folder that one of them
produced.
"""

import re
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

import pages
from gradsieve.demo.model import make_tokenizer
from gradsieve.recipe.load import load_recipe

# trl 1.16 still passes transformers 5.23 a setting by its old name.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`gradient_checkpointing` is deprecated:FutureWarning"
)

README, TUTORIAL = pages.ROOT / "README.md", pages.ROOT / "docs" / "tutorial.md"
PAGES = [README, *sorted((pages.ROOT / "docs").rglob("*.md"))]
FOLLOWS = {"docs/python.md": README, "docs/training.md": README}
"""Pages that don't start with the tutorial's folder."""

LANGUAGES = {"sh", "python", "yaml", "jsonl", "json", "toml", "jinja", "text"}

NOT_RUN = {
    ("README.md", "make demo"): "sets up an environment and trains for minutes; tests/demo runs it",
    ("docs/tutorial.md", "git clone GRADSIEVE_URL gradsieve"): "installs over the network",
    (
        "docs/howto/several-gpus.md",
        "accelerate launch --num_processes 4 -m gradsieve warmup recipe.yaml --out runs/first",
    ): "needs several GPUs; tests/e2e/test_processes.py runs it with two processes",
    ("docs/howto/several-gpus.md", "pip install 'gradsieve[ray]'"): "installs over the network",
    (
        "docs/tutorial-real-model.md",
        "pip install 'gradsieve[baselines,gguf]'",
    ): "installs over the network",
    **{
        ("docs/howto/cluster.md", line): "needs a cluster; tests/cluster runs it as far as it can"
        for line in (
            "RECIPE=recipe.yaml RUN=/shared/runs/first sbatch recipes/cluster/slurm.sbatch",
            "RECIPE=recipe.yaml RUN=/shared/runs/first SHARES=16 recipes/cluster/slurm-array.sh",
            "kubectl apply -f recipes/cluster/kuberay-rayjob.yaml",
            "ray up recipes/cluster/autoscaling.yaml",
        )
    },
    (
        "docs/howto/add-data.md",
        "gradsieve store merge half-1 half-2 --into all",
    ): "needs two machines; tests/store/test_maintain.py merges",
    ("docs/training.md", "base_model: Qwen/Qwen3-0.6B"): "axolotl's configuration, not a recipe",
    (
        "docs/training.md",
        "hf upload USER/NAME runs/first/04-select/legal/less . --repo-type dataset",
    ): "uploads",
}
"""The page and first line of each block that is not run, and the reason."""


def name(page: Path) -> str:
    return page.relative_to(pages.ROOT).as_posix()


def key(block: pages.Block) -> tuple[str, str]:
    """A block's key in `NOT_RUN`: its page and its first line, without a trailing comment."""
    return block.page, block.text.split("\n")[0].split("  #")[0].strip()


def run_of(page: Path) -> list[pages.Block]:
    """The blocks of a page that are run."""
    return [block for block in pages.blocks(page) if key(block) not in NOT_RUN]


@pytest.fixture(scope="module")
def brought(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a reader's files before the tutorial."""
    folder = tmp_path_factory.mktemp("brought")
    pages.prepare(folder)
    return folder


@pytest.fixture(scope="module")
def after(brought: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """Returns the folder after a page's blocks ran; tests must not change it."""

    @cache
    def followed(page: Path) -> Path:
        folder = tmp_path_factory.mktemp(page.stem) / "work"
        shutil.copytree(brought, folder)
        reader = pages.Reader(folder)
        for block in run_of(page):
            reader.follow(block)
        return folder

    return followed


@pytest.mark.parametrize(("page", "target"), [(TUTORIAL, "sql"), (README, "legal")])
def test_start(page: Path, target: str, after: Callable[[Path], Path]) -> None:
    selection = after(page) / "runs" / "first" / "04-select" / target / "less"
    assert (selection / "selected.jsonl").is_file()


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page not in (TUTORIAL, README)], ids=name
)
def test_page(page: Path, after: Callable[[Path], Path], tmp_path: Path) -> None:
    blocks = run_of(page)
    if not blocks:
        return
    shutil.copytree(after(FOLLOWS.get(name(page), TUTORIAL)), tmp_path / "work")
    reader = pages.Reader(tmp_path / "work")
    for block in blocks:
        reader.follow(block)


@pytest.mark.slow
def test_tutorial_in_a_real_shell(brought: Path, tmp_path: Path) -> None:
    shutil.copytree(brought, tmp_path / "work")
    reader = pages.Reader(tmp_path / "work", real_shell=True)
    for block in run_of(TUTORIAL):
        reader.follow(block)


def test_every_block_has_a_known_language() -> None:
    unknown = [
        f"{block.where}: {block.language or 'indented'}"
        for page in PAGES
        for block in pages.blocks(page)
        if block.language not in LANGUAGES
    ]
    assert not unknown


def test_what_is_not_run_is_there() -> None:
    there = {key(block) for page in PAGES for block in pages.blocks(page)}
    assert set(NOT_RUN) <= there


READY = "src/gradsieve/recipe/ready"


@pytest.mark.parametrize("recipe", sorted((pages.ROOT / READY).glob("*.yaml")), ids=name)
def test_recipes_load_and_name_themselves(recipe: Path) -> None:
    load_recipe(recipe)
    text = recipe.read_text(encoding="utf-8")
    commands = re.findall(r"^#\s+(gradsieve run .*)$", text, re.MULTILINE)
    assert commands == [f"gradsieve run {recipe.name} --out runs/{recipe.stem}"]


def test_the_template_of_its_page_prompts_with_the_text_before_an_answer() -> None:
    page = pages.ROOT / "docs" / "howto" / "own-template.md"
    (template,) = (block.text for block in pages.blocks(page) if block.language == "jinja")
    tokenizer = make_tokenizer()
    turns = [{"role": "user", "content": "a b"}, {"role": "assistant", "content": "a"}]
    options = {"chat_template": template, "tokenize": False}
    prompt = tokenizer.apply_chat_template(turns[:1], add_generation_prompt=True, **options)
    assert tokenizer.apply_chat_template(turns, **options).startswith(f"{prompt} a")
