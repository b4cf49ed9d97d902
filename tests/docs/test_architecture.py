"""docs/architecture.md and AGENTS.md name files, folders and layers that exist."""

import re
import tomllib

import pages

SOURCE = pages.ROOT / "src" / "gradsieve"


def named_paths(page: str) -> set[str]:
    """Folders and Python files in backticks."""
    text = (pages.ROOT / page).read_text(encoding="utf-8")
    inline = re.findall(r"`([a-z_]+(?:/[a-z_]+)*/?(?:\.py)?)`", text)
    return {path for path in inline if path.endswith(("/", ".py"))}


def test_named_files_exist() -> None:
    for page in ("docs/architecture.md", "AGENTS.md"):
        paths = named_paths(page)
        assert len(paths) > 10
        lacking = [p for p in paths if not (SOURCE / p).exists() and not (pages.ROOT / p).exists()]
        assert not lacking, page


def test_layers_are_the_linter_s() -> None:
    project = tomllib.loads((pages.ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contract = project["tool"]["importlinter"]["contracts"][0]
    wanted = [sorted(re.split(r" [:|] ", layer)) for layer in contract["layers"]]
    text = (pages.ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    block = next(b for b in re.findall(r"```text\n(.*?)```", text, re.DOTALL) if "__main__" in b)
    assert [sorted(layer.strip().split(", ")) for layer in block.split(">")] == wanted
