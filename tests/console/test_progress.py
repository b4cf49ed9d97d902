"""Progress output: plain lines, a terminal, a log; and the silencing of other libraries."""

import io
import json
import logging
import re
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path

import pytest
from rich.console import Console

import gradsieve.console
from gradsieve.console import Progress, clean, clean_lines, clock, log
from gradsieve.console.bars import make_bars, rate, status


class Terminal(io.StringIO):
    """A standard error stream that reports being a terminal."""

    def isatty(self) -> bool:
        return True


def terminal_of(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Make a terminal within the test: pytest changes sys.stderr between fixtures and tests."""
    monkeypatch.setenv("TERM", "xterm")
    made = Terminal()
    monkeypatch.setattr(sys, "stderr", made)
    return made


def work(progress: Progress, log: Path | None) -> None:
    """Log what a run logs."""
    with progress.running(["warmup", "score"], log):
        progress.end("warmup", "up to date")
        progress.begin("score")
        progress.say("  a detail [not markup]")
        progress.warn("look out")
        with progress.counting("scores", 3, "rows") as report:
            report(1)
            report(3)
        progress.end("score", "done in 1 s")


LINES = [
    "warmup: up to date",
    "score: starting",
    "  a detail [not markup]",
    "warning: look out",
    "  scores: 3/3 rows in 0 s",
    "score: done in 1 s",
]


def test_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    work(Progress(), None)
    told = capsys.readouterr()
    assert told.err.splitlines() == LINES
    assert told.out == ""


def test_quiet_lets_warnings_through(capsys: pytest.CaptureFixture[str]) -> None:
    work(Progress(quiet=True), None)
    assert capsys.readouterr().err == "warning: look out\n"


def test_a_terminal_shows_stages_and_says_the_rest_above(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_of(monkeypatch)
    work(Progress(), None)
    shown = terminal.getvalue()
    assert "  a detail [not markup]\n" in shown
    assert "warning: look out\n" in shown
    last = shown[shown.rindex("warmup") :]
    assert "up to date" in last
    assert "done in 1 s" in last
    assert re.search(r"/2 stages, 0 s, \d+\.\d GiB", shown)


def test_a_bar_while_it_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_of(monkeypatch)
    progress = Progress()
    with progress.running(["score"], None):
        progress.begin("score")
        with progress.counting("scores", 3, "rows") as report:
            report(0)
            report(1)
            report(2)
            progress._bars.refresh()
            bar = terminal.getvalue()
    assert "2/3 rows" in bar
    assert "left" in bar
    assert "\x1b[?25h" in terminal.getvalue()  # the cursor is shown again


def test_a_bar_outside_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_of(monkeypatch)
    progress = Progress()
    for _ in range(2):
        with progress.counting("convert", 3, "rows") as report:
            report(2)
            progress._bars.refresh()
    assert terminal.getvalue().count("2/3 rows") >= 2
    assert terminal.getvalue().endswith("\r\x1b[2K\x1b[?25h\r")  # the line is cleared


@pytest.mark.parametrize("label", ["scores", "representations of the second checkpoint " * 3])
def test_bars_fit_80_columns(label: str, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_of(monkeypatch)
    monkeypatch.setenv("COLUMNS", "80")
    progress = Progress()
    with progress.counting(label, 1_200_000, "rows") as report:
        for done in (0, 1, 3, 999_999):
            report(done)
        row = next(iter(progress._bars.tasks))
        row._progress[-1] = row._progress[-1]._replace(timestamp=row._progress[0].timestamp + 9e5)
        progress._bars.refresh()
    drawn = re.split("[\r\n]", re.sub("\x1b\\[[0-9;?]*[a-zA-Z]", "", terminal.getvalue()))
    assert max(map(len, drawn)) <= 80
    last = [line for line in drawn if line][-1]
    assert last.startswith(label[:10])
    assert last.endswith("999,999/1,200,000 rows, 1.1 rows/s, 50 h 0 min left")


def test_a_terminal_without_cursor_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_of(monkeypatch)
    monkeypatch.setenv("TERM", "dumb")
    work(Progress(), None)
    assert terminal.getvalue().splitlines() == LINES


@pytest.mark.parametrize("total", [0, None])
def test_an_unknown_total(
    total: int | None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for wait in (10.0, 0.0):
        monkeypatch.setattr(gradsieve.console, "SECONDS_BETWEEN_LINES", wait)
        with Progress().counting("pool", total, "rows") as report:
            report(0)
            report(1200)
    assert capsys.readouterr().err.splitlines() == [
        "  pool: 1,200 rows in 0 s",
        "  pool: 0 rows",
        "  pool: 1,200 rows",
        "  pool: 1,200 rows in 0 s",
    ]


@pytest.mark.parametrize("quiet", [False, True])
def test_the_log_has_all_with_times(
    tmp_path: Path, quiet: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        work(Progress(quiet), tmp_path / "log.txt")
    written = (tmp_path / "log.txt").read_text(encoding="utf-8").splitlines()
    assert [line[26:] for line in written] == 2 * LINES
    assert all(line[4] == line[7] == "-" and line[13] == ":" for line in written)


def test_the_log_of_a_terminal_has_lines_for_bars(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal_of(monkeypatch)
    work(Progress(), tmp_path / "log.txt")
    written = (tmp_path / "log.txt").read_text(encoding="utf-8").splitlines()
    assert [line[26:] for line in written] == LINES


def test_a_log_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    work(Progress(quiet=True), tmp_path)  # a folder


HOSTILE = "half \ud83d, \x1b[2Jof\x07 a\n  \tpair, \u202eleft :tada:"
SHOWN = "half \ufffd, \ufffd[2Jof\ufffd a\n        pair, \ufffdleft :tada:\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_log_on_a_full_disk_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither writing nor closing it fails; its last lines are lost."""
    full = partial(open, "/dev/full", "w")
    monkeypatch.setattr("gradsieve.console.lines._FileHandler._open", lambda _: full())
    work(Progress(), tmp_path / "log.txt")


def test_nothing_in_a_text_is_obeyed_or_breaks_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for stream in (terminal_of(monkeypatch), io.StringIO()):
        monkeypatch.setattr(sys, "stderr", stream)
        progress = Progress()
        with progress.running(["score"], tmp_path / "log.txt"):
            progress.warn(HOSTILE)
        assert SHOWN in stream.getvalue()
        assert "\x1b[2J" not in stream.getvalue().replace("\x1b[2K", "")
        stream.getvalue().encode("utf-8")
    assert SHOWN in (tmp_path / "log.txt").read_text(encoding="utf-8")


def test_clean_keeps_what_scripts_need() -> None:
    assert clean("a\u00a0b\tc \x9b1m") == "a b c \ufffd1m"
    for text in ("می\u200cخواهم", "क्\u200dष", "\N{WOMAN}\u200d\N{PERSONAL COMPUTER}"):
        assert clean(text) == clean_lines(text) == text


def test_new_code_logs_by_name_and_all_is_restored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = logging.NullHandler()
    log.addHandler(mine)
    before = log.handlers[:], log.level, log.propagate
    try:
        with Progress().running([], tmp_path / "log.txt"):
            logging.getLogger("gradsieve.data").info("read %d", 3)
            logging.getLogger("gradsieve.data").debug("a detail")
        assert (log.handlers, log.level, log.propagate) == before
    finally:
        log.removeHandler(mine)
    assert capsys.readouterr().err == "read 3\n"
    written = (tmp_path / "log.txt").read_text(encoding="utf-8").splitlines()
    assert [line[26:] for line in written] == ["read 3", "a detail"]


def test_other_libraries_speak_to_the_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import datasets
    import transformers

    before = logging.getLogger("transformers").handlers[:]
    progress = Progress()
    with progress.running([], tmp_path / "log.txt"), warnings.catch_warnings():
        warnings.simplefilter("default")
        transformers.utils.logging.get_logger("transformers.models").warning("half a\nmodel")
        logging.getLogger("peft").warning("an adapter")
        logging.getLogger("datasets.builder").warning("a builder")
        warnings.warn("an old name", FutureWarning, stacklevel=1)
        datasets.Dataset.from_dict({"a": [1, 2]}).map(lambda row: row)
    written = (tmp_path / "log.txt").read_text(encoding="utf-8").splitlines()
    assert [line[26:] for line in written] == [
        "[transformers.models] half a model",
        "[peft] an adapter",
        "[datasets.builder] a builder",
        "[FutureWarning] an old name",
    ]
    told = capsys.readouterr()
    assert told.err == told.out == ""
    assert logging.getLogger("transformers").handlers == before


def test_no_bars_of_other_libraries_and_theirs_again(capsys: pytest.CaptureFixture[str]) -> None:
    import tqdm.auto
    from huggingface_hub.utils import tqdm as of_hub

    bars = (tqdm.tqdm, tqdm.auto.tqdm, of_hub)
    with Progress().running([], None):
        for bar in bars:
            assert list(bar(range(3), disable=False)) == [0, 1, 2]
    assert capsys.readouterr().err == ""
    for bar in bars:
        assert list(bar(range(3), disable=False)) == [0, 1, 2]
        assert "3/3" in capsys.readouterr().err


def test_rate_and_time_left_leave_out_what_was_there_before() -> None:
    bars = make_bars(Console(file=io.StringIO()), disable=True)
    row = bars.add_task("x", total=100, unit="rows")
    for now, done in ((1.0, 90), (11.0, 95)):
        assert "," not in status(bars.tasks[0])  # neither rate nor remaining time
        bars.get_time = partial(float, now)
        bars.update(row, completed=done)
    assert status(bars.tasks[0]) == "95/100 rows, 30 rows/min, 10 s left"


def test_rates_are_numbers_that_people_read() -> None:
    assert rate(1234.5, "rows") == "1,234 rows/s"
    assert rate(1.25, "rows") == "1.2 rows/s"
    assert rate(0.0276, "epochs") == "1.7 epochs/min"
    assert rate(0.001, "models") == "3.6 models/h"


def test_clock() -> None:
    assert [clock(s) for s in (0.4, 59.4, 200, 7500)] == ["0 s", "59 s", "3 min 20 s", "2 h 5 min"]


def test_progress_imports_nothing_heavy() -> None:
    code = (
        "import sys, json, gradsieve.console\n"
        "heavy = {'torch', 'transformers', 'datasets', 'numpy'}\n"
        "print(json.dumps(sorted(heavy & set(sys.modules))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
