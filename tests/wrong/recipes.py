"""Wrong recipes and wrong command-line arguments."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from wrong import RUN, Case, Desk

Spoil = Callable[[Desk], object]


def key(name: str, value: Any) -> Spoil:
    return lambda desk: desk.set(name, value)


def text(content: str | bytes) -> Spoil:
    return lambda desk: desk.write("recipe.yaml", content)


def nothing(desk: Desk) -> None:
    """Changes nothing, since the command itself is wrong."""


def folder(desk: Desk) -> None:
    Path("recipe.yaml").unlink()
    Path("recipe.yaml").mkdir()


def exact_dot(desk: Desk) -> None:
    desk.set("features", {"mode": "exact"})
    desk.set("score.methods", ["less", "dot"])


def own_method_named_less(desk: Desk) -> None:
    desk.write("my.py", "class less: ...\n")
    desk.set("score.methods", ["my.py:less"])


def own_method(desk: Desk) -> None:
    desk.write("my.py", "class Longest: ...\n")
    desk.set("score.methods", ["my.py:Longest"])


def own_method_that_uses(what: str, body: str = "raise ValueError('no words')") -> Spoil:
    text = f"""class Longest:
    source = "rows with the most tokens"
    uses = "{what}"

    def score(self, task):
        {body}
"""

    def spoil(desk: Desk) -> None:
        desk.write("my.py", text)
        desk.set("score.methods", ["my.py:Longest"])

    return spoil


def wrong(name: str, spoil: Spoil, *says: str, command: str = RUN) -> Case:
    return Case(name, spoil, says, 2, command)


RECIPES = (
    wrong("a misspelt key", key("warmup.epoch", 2), "warmup.epoch (line", "mean `epochs`?"),
    wrong("a misspelt section", key("featurs", {}), "featurs (line", "mean `features`?"),
    wrong("a key in another section", key("features.dim", 8), "belongs in `features.projection`"),
    wrong("a value of the wrong type", key("warmup.epochs", "four"), "a whole number; got 'four'"),
    wrong("a value out of range", key("select.fraction", 1.5), "than or equal to 1; got 1.5"),
    wrong("an infinite learning rate", key("warmup.learning_rate", float("inf")), "got inf"),
    wrong("a seed that NumPy refuses", key("warmup.seed", 2**40), "warmup.seed (line", "less than"),
    wrong("no source at all", key("pool", []), "pool (line", "a list of at least one; got []"),
    wrong("a section that is null", key("warmup", None), "expected a section of keys; got None"),
    wrong("a name that can't name a file", key("pool.0.name", "a/b"), "letters, digits", "'a/b'"),
    wrong("two sources of one name", key("pool.1.name", "one"), "the name one is used twice"),
    wrong(
        "a target called together", key("targets.1.name", "together"), "together is a reserved name"
    ),
    wrong(
        "a target called like a file",
        key("targets.1.name", "results.json"),
        "results.json is a reserved name",
    ),
    wrong(
        "a column of no format", key("pool.0.columns", {"promt": "q"}), "pool.0.columns", "promt"
    ),
    wrong("an unknown task", key("targets.0.task", "mmmlu"), "mmlu, bbh, tydiqa or custom"),
    wrong("an unknown method", key("score.methods", ["lesss"]), "no method lesss", "mean less?"),
    wrong("a method that exact mode lacks", exact_dot, "score.methods: less, dot", "mode: store"),
    wrong(
        "a mean of best examples",
        key("score", {"target_mean": "none", "across_subtasks": "mean"}),
        "target_mean: none takes the best example",
        "mean_of_cosines",
    ),
    wrong(
        "a file of a method that isn't there", key("score.methods", ["m.py:M"]), "does not exist"
    ),
    wrong(
        "a class that is no method", own_method, "Longest is not a method", "source, uses, score"
    ),
    wrong(
        "a method that needs what is not known",
        own_method_that_uses("gradient"),
        "Longest uses 'gradient', which is not known",
        "one of 'data', 'model', 'gradients', 'plain gradients'",
    ),
    wrong(
        "a method of your own with the name of another",
        own_method_named_less,
        "Your method has the reserved name less.",
        "score.methods: my.py:less",
        "score.files: {my_less: my.py:less}",
    ),
    wrong(
        "a method of your own that fails",
        own_method_that_uses("data"),
        "The method Longest failed: ValueError: no words",
        "my.py:6",
    ),
    wrong(
        "a method of your own that returns no scores",
        own_method_that_uses("data", "return {}"),
        "The method Longest returned nothing for target",
        "docs/methods.md",
    ),
    wrong(
        "a fusion of itself",
        key("score", {"methods": ["fusion"], "fusion": ["less", "fusion"]}),
        "fusion cannot be a part of itself",
    ),
    wrong(
        "a fusion of what is no method",
        key("score", {"methods": ["fusion"], "fusion": ["less", "bm52"]}),
        "no method bm52",
        "mean bm25?",
    ),
    wrong("a size that is no number", key("select.fraction", [0.1, "x"]), "fraction.1", "got 'x'"),
    wrong(
        "truth as a number", key("warmup.epochs", True), "warmup.epochs", "true is not allowed here"
    ),
    wrong("truth as a size", key("select.count", [True, 2]), "true is not allowed here"),
    wrong("truth as a cap", key("select.per_source", {"dolly": True}), "true is not allowed here"),
    wrong(
        "tokens of a batch that are no number",
        key("features.tokens_per_batch", "abc"),
        "1 problem",
        "a positive number of tokens, or auto; got 'abc'",
    ),
    wrong(
        "names of modules that are none",
        key("warmup.lora.target_modules", ["q_proj", 2]),
        "1 problem",
        "warmup.lora.target_modules.1",
    ),
    wrong("a size written twice", key("select.fraction", [0.1, 0.1]), "0.1 is used twice"),
    wrong("a template of no other model", key("train.chat_template", "tulu"), "not set here"),
    wrong(
        "a target to evaluate that isn't one",
        key("evaluate", {"tasks": ["mien"]}),
        "no target is called mien",
        "'mine'",
    ),
    wrong(
        "a cap that is no number",
        key("select.per_source", {"one": "x"}),
        "select.per_source.one (line",
        "a number; got 'x'",
    ),
    wrong("a cap on no source", key("select.per_source", {"on": 0.5}), "no source is called on"),
    wrong(
        "a subtask field for a benchmark",
        lambda desk: desk.set("targets.1.task", "mmlu") or desk.set("targets.1.subtask", "kind"),
        "`subtask` is for task: custom",
        "mmlu has its own subtasks",
    ),
    wrong("two ways to say how many", key("select", {"count": 3, "tokens": 9}), "expected one of"),
    wrong("no recipe", lambda desk: Path("recipe.yaml").unlink(), "No such file", "the path"),
    wrong("a recipe that is a folder", folder, "Is a directory", "recipe.yaml"),
    wrong("an empty recipe", text(""), "a mapping of sections at the top, found nothing"),
    wrong("a recipe that is a list", text("- a\n"), "sections at the top, found list"),
    wrong("a recipe that is not YAML", text("model: {name: m\npool: ]\n"), "not YAML", "yaml:2"),
    wrong("a recipe with a tab", text("model:\n\tname: m\n"), r"character '\t'", "recipe.yaml:2"),
    wrong("a binary recipe", text(bytes(range(256))), "it is not UTF-8 text", "Use a YAML file"),
    wrong(
        "a key written twice",
        text("model: {name: a, name: b}\n"),
        "model.name (line 1): written twice",
    ),
    wrong(
        "a quote that is not closed",
        text('model:\n  name: "m\npool: x\n'),
        *("end of stream while scanning a quoted scalar that begins on line 2", "yaml:4"),
    ),
    wrong("a recipe that would run code", text("a: !!python/name:os.system\n"), "not YAML"),
    wrong("an anchor within itself", text("pool: &a [*a]\n"), "an anchor that contains itself"),
    wrong("a thirteenth month", text("model: {name: 2024-13-01}\n"), "month must be in 1..12"),
)

COMMANDS = (
    wrong(
        "--set without a value",
        nothing,
        "--set warmup.epochs: expected section.key=value",
        "--set warmup.epochs=2",
        command=f"{RUN} --set warmup.epochs",
    ),
    wrong(
        "--set of an unknown key",
        nothing,
        "warmup.epoch",
        "mean `epochs`?",
        command=f"{RUN} --set warmup.epoch=2",
    ),
    wrong(
        "--set beyond a list's end",
        nothing,
        "7 is not a position in a list of 2, counted from 0",
        command=f"{RUN} --set pool.7.path=a",
    ),
    wrong(
        "--from an unknown stage",
        nothing,
        "There is no stage scores",
        "One of pool, warmup, features, score",
        command=f"{RUN} --from scores",
    ),
    wrong(
        "--from after --until",
        nothing,
        "select, score",
        "The order is pool, warmup",
        command=f"{RUN} --from select --until score",
    ),
    wrong(
        "a share of the features that isn't one",
        nothing,
        "4/3 is not a share",
        "--shard-of",
        command="features recipe.yaml --out run --shard-of 4/3",
    ),
    wrong("no --out", nothing, "Missing option '--out'", command="run recipe.yaml"),
    wrong(
        "an unknown command", nothing, "No such command 'rnu'", command="rnu recipe.yaml --out run"
    ),
    wrong("an unknown option", nothing, "--sett", command=f"{RUN} --sett a=b"),
)
