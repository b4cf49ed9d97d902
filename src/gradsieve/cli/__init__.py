"""The command line: `init`, `run`, each stage, `plan`, `show`, `explain`, `compare`, `store`, ...

Standard output carries the result, standard error the progress. Exit status 0: done; 1: failed;
2: wrong usage or recipe; 128 + N: stopped by signal N (130: Ctrl-C). Heavy imports are delayed
until a command needs them. All text is printed by `echo`, which replaces control characters.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from gradsieve.cli.shared import Json, Quiet, echo, importing, option
from gradsieve.cli.signals import interruptible
from gradsieve.cli.starter import init
from gradsieve.cli.stores import store_app
from gradsieve.errors import GradsieveError, UsageError
from gradsieve.runs.folder import STAGE_NAMES, STAGES, RunFolder, check_stage_names

if TYPE_CHECKING:
    from gradsieve.recipe.schema import Recipe


class _Commands(TyperGroup):
    """Commands that exit without a traceback on Ctrl-C."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        with interruptible():
            return super().invoke(ctx)


app = typer.Typer(
    name="gradsieve",
    cls=_Commands,
    help="Find the few percent of an instruction pool that teach a language model a chosen skill.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run the command line; a user's mistake is reported in one message, without a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # escapes characters that its encoding lacks
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except GradsieveError as error:
        echo(f"error: {error}", err=True)
        sys.exit(error.exit_status)
    except BrokenPipeError:  # the reader has exited, e.g. `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _print_version(wanted: bool) -> None:
    if wanted:
        import gradsieve

        echo(f"gradsieve {gradsieve.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", is_eager=True, callback=_print_version
        ),
    ] = False,
) -> None:
    pass


RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE.yaml", help="The recipe.")]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="The run folder.")]
Out = Annotated[Path, option("--out", "RUN", "The run folder.")]
Set = Annotated[
    list[str] | None,
    option("--set", "SECTION.KEY=VALUE", "Override a key of the recipe; repeatable."),
]


@app.command(
    epilog="Example: gradsieve run llama2-7b.yaml --out runs/llama2-7b --set warmup.seed=1"
)
def run(
    recipe: RecipeFile,
    out: Out,
    set_: Set = None,
    from_: Annotated[
        str | None, option("--from", "STAGE", "Start here; use earlier stages as they are.")
    ] = None,
    until: Annotated[str | None, option("--until", "STAGE", "Stop after this stage.")] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Run all stages of a recipe; those that are up to date are kept."""
    check_stage_names((from_, until), "--from, --until")
    _run(recipe, out, set_, from_, until, quiet, as_json)


def _stage_command(name: str) -> Callable[..., None]:
    def command(
        recipe: RecipeFile,
        out: Out,
        set_: Set = None,
        quiet: Quiet = False,
        as_json: Json = False,
    ) -> None:
        _run(recipe, out, set_, name, name, quiet, as_json)

    return command


def _features(
    recipe: RecipeFile,
    out: Out,
    set_: Set = None,
    shard_of: Annotated[
        str | None,
        option(
            "--shard-of",
            "I/N",
            "Take every N-th shard only, from the I-th: N such commands, in any order or at "
            "once, do the stage. Pool and warm-up come first.",
        ),
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    share = None if shard_of is None else _share(shard_of)
    _run(recipe, out, set_, "features", "features", quiet, as_json, share)


app.command(
    epilog="Example: gradsieve init --model Qwen/Qwen3-0.6B --pool a.jsonl --target t.jsonl"
)(init)

for _stage, _summary in STAGES.items():
    app.command(
        _stage,
        help=_summary,
        epilog=f"Example: gradsieve {_stage} recipe.yaml --out runs/first",
    )(_features if _stage == "features" else _stage_command(_stage))


@app.command(epilog="Example: gradsieve plan llama2-7b.yaml --out runs/llama2-7b --gpu H100")
def plan(
    recipe: RecipeFile,
    out: Annotated[
        Path | None, option("--out", "RUN", "The run folder, for finished stages and free disk.")
    ] = None,
    set_: Set = None,
    gpu: Annotated[str | None, option("--gpu", "NAME", "Predict for this GPU, e.g. H100.")] = None,
    workers: Annotated[
        int, option("--workers", "N", "Workers of the engine, a GPU each.", min=1)
    ] = 1,
    no_calibration: Annotated[
        bool,
        typer.Option("--no-calibration", help="Load no model; predict no seconds."),
    ] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Check all inputs, then predict time, memory and disk; write nothing."""
    checked = _checked(recipe, set_)
    with importing():
        from gradsieve.console import Progress
        from gradsieve.pipeline.plan import plan as make_plan

    with redirect_stdout(sys.stderr):  # output of a user's own method
        found = make_plan(
            checked,
            out,
            gpu=gpu,
            workers=workers,
            calibrate=not no_calibration,
            progress=Progress(quiet),
        )
    echo(asdict(found) if as_json else str(found))


@app.command(epilog="Example: gradsieve show recipe.yaml --first 3")
def show(
    recipe: RecipeFile,
    id_: Annotated[str | None, option("--id", "ID", "The row with this id.")] = None,
    first: Annotated[int, option("--first", "N", "The first rows of each source.", min=1)] = 1,
    source: Annotated[str | None, option("--source", "S", "Rows of this source alone.")] = None,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Print rows of the pool as the model reads them, with supervised text marked."""
    checked = _checked(recipe, set_)
    with importing():
        from gradsieve.pipeline.show import show as shown

    rows = shown(checked, id=id_, first=first, source=source)
    if as_json:
        echo([asdict(row) for row in rows])
    elif sys.stdout.isatty():
        from rich.console import Console

        for row in rows:
            Console(soft_wrap=True, highlight=False).print(row.colored())
    else:
        for row in rows:
            echo(str(row))


@app.command(epilog="Example: gradsieve explain runs/first --target legal --id 1204")
def explain(
    run: Run,
    id_: Annotated[str, option("--id", "ID", "The example's id.")],
    target: Annotated[
        str | None, option("--target", "T", "The target, if there are several.")
    ] = None,
    source: Annotated[
        str | None, option("--source", "S", "The source, if several have this id.")
    ] = None,
    method: Annotated[str | None, option("--method", "M", "Default: the recipe's first.")] = None,
    as_json: Json = False,
) -> None:
    """Explain an example's rank: its scores, contributions to them, nearest neighbors."""
    with importing():
        from gradsieve.analysis.explain import explain as explained

    explanation = explained(run, target, id=id_, source=source, method=method)
    if sys.stdout.isatty() and not as_json:
        explanation.print()
    else:
        echo(asdict(explanation) if as_json else str(explanation))


@app.command(epilog="Example: gradsieve compare runs/first runs/second --format latex")
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders.")],
    format_: Annotated[str, option("--format", "FORMAT", "markdown, latex or json.")] = "markdown",
    as_json: Json = False,
) -> None:
    """Compare methods: results over seeds, difference to random, overlap and cost."""
    with importing():
        from gradsieve.analysis.results import compare as compared

    format_ = "json" if as_json else format_
    if format_ not in ("markdown", "latex", "json"):
        todo = "One of markdown, latex, json."
        raise UsageError(f"There is no format {format_}.", "--format", todo)
    comparison = compared(runs)
    for note in comparison.notes:
        echo(f"warning: {note}", err=True)
    echo(asdict(comparison) if format_ == "json" else getattr(comparison, format_)())


@app.command("verify", epilog="Example: gradsieve verify runs/first")
def verify_run(run: Run, quiet: Quiet = False, as_json: Json = False) -> None:
    """Check every file of a run against its recorded hash; exit status 1 if any is wrong."""
    with importing():
        from gradsieve.console import Progress
        from gradsieve.runs.verify import verify as verified

    folder = RunFolder(run)
    with Progress(quiet).counting("verify", len(folder.stages_there()), "stages") as report:
        found = verified(folder, report)
    echo(asdict(found) if as_json else found.text())
    if found.problems:
        raise typer.Exit(1)


@app.command(epilog="Example: gradsieve demo --out runs/demo")
def demo(out: Out = Path("runs/demo"), quiet: Quiet = False, as_json: Json = False) -> None:
    """Run every stage on a small built-in example, on a CPU, in minutes."""
    with importing():
        from gradsieve.console import Progress
        from gradsieve.demo import main as run_demo

    with interruptible(out):
        result = run_demo(out, Progress(quiet))
    echo(asdict(result) if as_json else result.table())


app.add_typer(store_app)


def _checked(recipe: Path, overrides: list[str] | None) -> Recipe:
    """The recipe, checked before slow imports."""
    from gradsieve.recipe.load import load_recipe

    return load_recipe(recipe, overrides or ())


def _run(
    recipe: Path,
    out: Path,
    overrides: list[str] | None,
    first: str | None,
    last: str | None,
    quiet: bool,
    as_json: bool,
    share: tuple[int, int] | None = None,
) -> None:
    with interruptible(out), redirect_stdout(sys.stderr):  # output of a user's own method
        checked = _checked(recipe, overrides)
        with importing():
            from gradsieve.console import Progress
            from gradsieve.pipeline import run as pipeline

        if share is None:
            done = pipeline.run(checked, out, first=first, last=last, progress=Progress(quiet))
        else:
            done = pipeline.run_share(checked, out, share, Progress(quiet))
    from gradsieve.models import distributed

    if distributed.is_first():
        _print_result(done, pipeline.stages_of(checked), as_json)


def _share(text: str) -> tuple[int, int]:
    number, _, count = text.partition("/")
    if number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count):
        return int(number), int(count)
    raise UsageError(
        f"{text} is not a share.", "--shard-of", "Write the number of the share, from 1: 3/8."
    )


def _print_result(run: RunFolder, needed: Sequence[str], as_json: bool) -> None:
    """Print the run's selections, results and report; as JSON, the metadata of all stages.

    The recipe needs the stages `needed`; the run may have others, from another recipe.
    """
    from gradsieve.runs.artifacts import Artifacts
    from gradsieve.runs.lineage import outdated, update

    metas = {name: meta for name in STAGE_NAMES if (meta := run.metadata(name)) is not None}
    stale = outdated(run)
    if as_json:
        echo({"run": str(run.path), "stages": metas, "out_of_date": stale})
        return
    selected: dict[str, Any] = metas.get("select", {}).get("targets", {})
    for target, methods in selected.items():
        for method, facts in methods.items():
            sources = ", ".join(f"{name} {count}" for name, count in facts["sources"].items())
            folder = Artifacts(run).selections.selection(target, method).folder
            echo(
                f"{target}, {method}: {facts['rows']} rows, {facts['tokens']} tokens "
                f"({sources}) in {folder}"
            )
    if metas.keys() & {"evaluate", "validate"} and "evaluate" not in stale:
        from gradsieve.analysis.results import compare as compared

        echo("\n" + compared([run.path]).markdown())
    if "report" in metas and "report" not in stale:
        echo(f"report: {Artifacts(run).report.page}")
    for name, reason in stale.items():
        echo(f"{name}: out of date, because {reason}")
    if stale:
        own = [name for name in stale if name in needed]
        command = update(run, own) if own else f"gradsieve {next(iter(stale))}"
        echo(f"To update: `{command}` with this recipe and --out {run.path}")
    if not selected:
        echo(f"done: {', '.join(metas)} in {run.path}")
