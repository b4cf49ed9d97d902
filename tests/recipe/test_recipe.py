"""A recipe is typed, frozen data; all its problems are reported at once, each with its location."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

import gradsieve.recipe
from gradsieve.errors import RecipeError
from gradsieve.recipe.load import check_recipe, dump_recipe, load_recipe
from gradsieve.recipe.schema import Recipe

GOOD = """
model: {name: some/model}
pool: [{name: dolly, path: dolly.jsonl}]
targets: [{name: mine, path: mine.jsonl, subtask: topic}]
"""


def written(folder: Path, text: str) -> Path:
    file = folder / "recipe.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def problems(folder: Path, text: str, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(written(folder, text), overrides)
    assert caught.value.exit_status == 2
    return caught.value.problems


def test_defaults_are_the_papers(tmp_path: Path) -> None:
    recipe = load_recipe(written(tmp_path, GOOD))
    assert recipe.warmup.fraction == 0.05
    assert recipe.warmup.epochs == 4
    assert recipe.warmup.lora.r == 128
    assert recipe.features.projection.dim == 8192
    assert recipe.select.fraction == 0.05
    assert recipe.score.across_subtasks == "standardized_max"


def test_is_frozen(tmp_path: Path) -> None:
    recipe = load_recipe(written(tmp_path, GOOD))
    with pytest.raises(ValidationError, match="frozen"):
        recipe.on_bad_row = "skip"  # type: ignore[misc]


def test_all_problems_at_once_with_their_lines(tmp_path: Path) -> None:
    text = """model: {name: m, dtyp: float32}
pool:
  - {name: a b, path: x}
  - {name: c, pth: x}
targets: [{name: t, path: p, task: mmmlu}]
warmup: {epochs: four, lora: {alhpa: 3}}
features: {dim: 3}
"""
    found = problems(tmp_path, text)
    assert [line.split(":")[0] for line in found] == [
        "model.dtyp (line 1)",
        "pool.0.name (line 3)",
        "pool.1.path (line 4)",
        "pool.1.pth (line 4)",
        "targets.0.task (line 5)",
        "warmup.epochs (line 6)",
        "warmup.lora.alhpa (line 6)",
        "features.dim (line 7)",
    ]
    assert "did you mean `dtype`?" in found[0]
    assert "missing" in found[2]
    assert "did you mean `path`?" in found[3]
    assert "expected mmlu, bbh, tydiqa or custom; got 'mmmlu'" in found[4]
    assert "got 'four'" in found[5]
    assert "did you mean `alpha`?" in found[6]
    assert "belongs in `features.projection`" in found[7]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("select: {fraction: 0.1, count: 3}", "expected one of fraction, count, tokens"),
        ("select: {fraction: 1.5}", "less than or equal to 1"),
        ("warmup: {batch_size: 32, micro_batch_size: 5}", "does not divide"),
        ("warmup: {checkpoints: []}", "empty list"),
        ("features: {tokens_per_batch: 0}", "positive number of tokens"),
        ("features: {bits: 5}", "expected 1, 2, 4, 8, 16 or 32; got 5"),
        ("features: {projection: {dim: 100}}", "multiple of 8"),
        ("features: {mode: exact, bits: 8}", "mode: exact does not use bits"),
        ("nonsense: 1", "known here: model, pool"),
        ("warmup: 3", "expected a section of keys"),
    ],
)
def test_wrong_values_say_what_was_expected(tmp_path: Path, change: str, said: str) -> None:
    assert said in problems(tmp_path, GOOD + change + "\n")[0]


def test_names_are_unique_and_subtask_is_for_custom(tmp_path: Path) -> None:
    twice = GOOD.replace("dolly.jsonl}", "dolly.jsonl}, {name: dolly, path: b}")
    assert "used twice" in problems(tmp_path, twice)[0]
    named = GOOD.replace("subtask:", "task: mmlu, subtask:")
    assert "mmlu has its own subtasks" in problems(tmp_path, named)[0]


def test_one_source_or_target_stands_alone(tmp_path: Path) -> None:
    alone = (
        GOOD.replace("[", "").replace("]", "").replace("name: dolly, ", "source_field: dataset, ")
    )
    found = load_recipe(written(tmp_path, alone), ["pool.path=other.jsonl"])
    (source,), (target,) = found.pool, found.targets
    assert (source.name, source.path, source.source_field) == ("pool", "other.jsonl", "dataset")
    assert target.subtask == "topic"
    assert "missing" in problems(tmp_path, alone.replace("path: mine.jsonl, ", ""))[0]


@pytest.mark.parametrize("key", ["target_modules", "exclude_modules"])
def test_a_regular_expression_that_is_none(tmp_path: Path, key: str) -> None:
    (problem,) = problems(tmp_path, GOOD, f"warmup.lora.{key}=(q_proj")
    assert "is not a regular expression" in problem
    fine = load_recipe(written(tmp_path, GOOD), [rf"warmup.lora.{key}=.*\.q_proj"])
    assert getattr(fine.warmup.lora, key) == r".*\.q_proj"


@pytest.mark.parametrize("name", ["together", "target_loss"])
def test_names_that_mean_something_else_are_refused(name: str) -> None:
    tree = {"model": {"name": "m"}, "pool": [{"name": "a", "path": "a"}]}
    with pytest.raises(RecipeError, match=f"{name} is a reserved name"):
        check_recipe({**tree, "targets": [{"name": name, "path": "t"}]})


def test_all_weights_of_a_quantized_model_are_not_trained(tmp_path: Path) -> None:
    quantized = GOOD.replace("model: {", "model: {quantization: 4bit, ")
    assert quantized != GOOD
    (problem,) = problems(tmp_path, quantized + "train: {full_parameters: true}\n")
    assert "model.quantization freezes" in problem


def test_a_section_written_twice_is_one_problem(tmp_path: Path) -> None:
    twice = GOOD + "model: {name: other}\n"
    assert problems(tmp_path, twice) == ["model (line 5): written twice, first on line 2"]
    assert "written twice" in problems(tmp_path, GOOD + "warmup: {epochs: 1, epochs: 2}\n")[0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model: [", "not YAML"),
        ("- 1\n- 2\n", "expected a mapping"),
        ("", "expected a mapping"),
    ],
)
def test_files_that_are_no_recipe(tmp_path: Path, text: str, said: str) -> None:
    assert said in problems(tmp_path, text)[0]


def test_missing_and_binary_files(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="No such file"):
        load_recipe(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="not UTF-8"):
        load_recipe(tmp_path / "binary.yaml")


def test_set_changes_values_anywhere(tmp_path: Path) -> None:
    overrides = ["warmup.epochs=2", "pool.0.path=b.jsonl", "select.count=7", "train.seeds=[1, 2]"]
    recipe = load_recipe(written(tmp_path, GOOD), overrides)
    assert recipe.warmup.epochs == 2
    assert recipe.pool[0].path == "b.jsonl"
    assert (recipe.select.count, recipe.select.fraction) == (7, None)
    assert recipe.train is not None
    assert recipe.train.seeds == [1, 2]


@pytest.mark.parametrize(
    ("override", "kept"),
    [
        ("select.count=30", {"fraction": None, "count": 30, "tokens": None}),
        ("select.tokens=900", {"fraction": None, "count": None, "tokens": 900}),
        ("select.count=null", {"fraction": 0.1, "count": None, "tokens": None}),
    ],
)
def test_the_size_of_a_selection_is_replaced(
    tmp_path: Path, override: str, kept: dict[str, float | None]
) -> None:
    sized = GOOD + "select: {fraction: 0.1, together: true}\n"
    select = load_recipe(written(tmp_path, sized), [override]).select
    assert select.model_dump(include={"fraction", "count", "tokens"}) == kept
    assert select.together
    key, value = override.removeprefix("select.").split("=")
    (tmp_path / "base.yaml").write_text(sized)
    extending = f"base: base.yaml\nselect: {{{key}: {value}}}\n"
    assert load_recipe(written(tmp_path, extending)).select == select


def test_a_base_that_is_not_there_is_named_with_its_recipe(tmp_path: Path) -> None:
    """This happens when a recipe is moved to another folder."""
    missing = tmp_path / ".." / "other.yaml"
    (problem,) = problems(tmp_path, "base: ../other.yaml\n")
    assert problem.startswith(f"base (line 1): there is no {missing}; a base is relative to")


def test_a_list_and_a_null_replace_what_a_base_has(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(
        "model: {name: m}\npool: {path: p, source_field: kind}\nfeatures: {projection: {dim: 8}}\n"
        "targets:\n  - {name: a, path: t, test: u}\n"
        "select: {per_source: {pool/x: 3, pool/y: 0.5}}\n"
    )
    extending = "base: base.yaml\nfeatures: {mode: exact, projection: null}\n"
    assert load_recipe(written(tmp_path, extending)).features.mode == "exact"
    exact = ["features.mode=exact", "features.projection=null"]
    assert load_recipe(tmp_path / "base.yaml", exact).features.mode == "exact"
    extending += "pool: {path: q}\nselect: {per_source: {pool/x: null, pool/y: null, pool: 2}}\n"
    found = load_recipe(written(tmp_path, extending))
    assert (found.pool[0].source_field, found.select.per_source) == (None, {"pool": 2})
    assert problems(tmp_path, extending + "targets:\n  - {name: b}\n") == [
        "targets.0.path (line 6): missing; this key must be set"
    ]


def test_a_method_replaces_methods(tmp_path: Path) -> None:
    scored = GOOD + "score: {methods: [less, random]}\n"
    assert load_recipe(written(tmp_path, scored), ["score.method=bm25"]).score.methods == ["bm25"]


@pytest.mark.parametrize("score", ['{method: "my.py:Longest"}', '{methods: ["my.py:Longest"]}'])
def test_a_method_of_a_file_has_the_name_of_its_object(tmp_path: Path, score: str) -> None:
    found = load_recipe(written(tmp_path, f"{GOOD}score: {score}\n")).score
    assert (found.methods, found.files) == (["Longest"], {"Longest": "my.py:Longest"})
    wrong = score.replace("}", ", files: [x]}")
    assert "score.files" in "".join(problems(tmp_path, f"{GOOD}score: {wrong}\n"))


def test_numbers_are_decimal(tmp_path: Path) -> None:
    """YAML 1.1 has octal numbers (010 is 8) and numbers to base 60 (1:30 is 90)."""
    text = f"{GOOD}warmup: {{epochs: 010, learning_rate: 0.1}}\n"
    recipe = load_recipe(written(tmp_path, text), ["warmup.batch_size=0016"])
    assert (recipe.warmup.epochs, recipe.warmup.batch_size) == (10, 16)
    assert recipe.warmup.learning_rate == 0.1
    assert problems(tmp_path, f"{GOOD}warmup: {{epochs: 1:30}}\n")[0].endswith("got '1:30'")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("warmup.epochs", "expected section.key=value"),
        ("pool.3.path=x", "3 is not a position in a list of 1"),
        ("model.name.x=1", "is a value"),
        ("warmup.epochs=[", "not YAML"),
        ("warmup.epoch=2", "did you mean `epochs`?"),
        ("train.seed=1", "did you mean `seeds`?"),
        ("warmup.lr=1", "did you mean `learning_rate`?"),  # not `lora`
        ("warmup.lora_alpha=1", "`alpha` belongs in `warmup.lora`"),
        ("seed=1", "`seed` belongs in `warmup`"),  # not `select`, which is a little like it
    ],
)
def test_set_that_is_wrong(tmp_path: Path, override: str, said: str) -> None:
    assert said in problems(tmp_path, GOOD, override)[0]


def test_dump_reads_back_equal(tmp_path: Path) -> None:
    recipe = load_recipe(written(tmp_path, GOOD), ["select.tokens=99", "train.model=other"])
    assert load_recipe(written(tmp_path, dump_recipe(recipe))) == recipe


def test_every_field_is_described() -> None:
    def undescribed(section: type, at: str) -> list[str]:
        from gradsieve.recipe.load import section_of

        missing = []
        for name, field in section.model_fields.items():
            inner = section_of(field.annotation)
            if inner is not None:
                missing += undescribed(inner, f"{at}{name}.")
            elif not field.description:
                missing.append(at + name)
        return missing

    assert undescribed(Recipe, "") == []


RECIPES = sorted((Path(gradsieve.recipe.__file__).parent / "ready").glob("*.yaml"))


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_recipes_that_we_ship_are_right(file: Path) -> None:
    load_recipe(file)


def test_the_papers_recipes_have_no_default_of_ours() -> None:
    """This concerns keys that change scores, except the sketch (unbiased, with the same error)."""
    read = {file.stem: load_recipe(file) for file in RECIPES}
    for name in ("llama2-7b", "less-t-mistral-7b", "less-t-llama2-13b", "llama2-7b-as-released"):
        features, score = read[name].features, read[name].score
        released = name.endswith("released")
        assert not features.projection.balanced
        assert score.across_subtasks == "max"
        assert features.projection.kind == ("rademacher" if released else "sketch")
        assert features.adam == ("official" if released else "torch")
        assert score.target_mean == ("mean_of_cosines" if released else "cosine_of_mean")


def test_recipes_are_shipped() -> None:
    assert len(RECIPES) >= 5


def test_what_is_supervised_is_a_key_of_sources_and_targets() -> None:
    tree: dict[str, Any] = {
        "model": {"name": "m"},
        "pool": [{"name": "a", "path": "a.jsonl", "supervise": "all"}],
        "targets": [{"name": "t", "path": "t.jsonl", "supervise": "all"}],
    }
    recipe = check_recipe(tree)
    assert recipe.pool[0].supervise == recipe.targets[0].supervise == "all"
    tree["targets"][0] |= {"task": "mmlu"}
    assert check_recipe(tree).targets[0].supervise == "all"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model.dtype=float8", "model.dtype (--set model.dtype=float8): expected float32"),
        ("pool.0.name=a b", "pool.0.name (--set pool.0.name=a b): expected letters"),
        ("warmup.lora={r: x}", "warmup.lora.r (--set warmup.lora={r: x}): expected"),
        ("warmup.epoch=3", "warmup.epoch (--set warmup.epoch=3): unknown key"),
    ],
)
def test_a_value_set_on_the_command_line_has_no_line(
    tmp_path: Path, override: str, said: str
) -> None:
    text = f"{GOOD}warmup: {{epochs: 2, lora: {{r: 8}}}}\n"
    assert problems(tmp_path, text, override)[0].startswith(said)
