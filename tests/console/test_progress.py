"""What is said where: plain lines, a terminal, a log; and what other libraries may not say."""

import io
import json
import logging
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from gradsieve.console import Progress, clock
from gradsieve.console.count import Count


class Terminal(io.StringIO):
    """A standard error that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def terminal_of(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """In the test itself: pytest changes sys.stderr between fixtures and tests."""
    monkeypatch.setenv("TERM", "xterm")
    made = Terminal()
    monkeypatch.setattr(sys, "stderr", made)
    return made


def work(progress: Progress, log: Path | None) -> None:
    """What a run says."""
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
    "  scores: 3/3 rows, ",
    "score: done in 1 s",
]


def lines_of(text: str) -> list[str]:
    """Without rates, which vary."""
    return [line.split("rows, ")[0] + ("rows, " if "rows, " in line else "")
            for line in text.splitlines()]  # fmt: skip


def test_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    work(Progress(), None)
    told = capsys.readouterr()
    assert lines_of(told.err) == LINES
    assert told.out == ""


def test_quiet_lets_warnings_through(capsys: pytest.CaptureFixture[str]) -> None:
    work(Progress(quiet=True), None)
    assert capsys.readouterr().err == "warning: look out\n"


def test_a_terminal_shows_stages_and_says_the_rest_above(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_of(monkeypatch)
    work(Progress(), None)
    shown = terminal.getvalue()
    assert "  a detail [not markup]" in shown
    assert "warning: look out" in shown
    last = shown[shown.rindex("warmup") :]
    assert "up to date" in last
    assert "done in 1 s" in last
    assert "memory" in last
    assert "GiB" in last


def test_a_bar_while_it_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_of(monkeypatch)
    progress = Progress()
    with progress.running(["score"], None):
        progress.begin("score")
        with progress.counting("scores", 3, "rows") as report:
            report(0)
            report(2)
            progress._display._live.refresh()
            bar = terminal.getvalue()
    assert "2/3 rows" in bar
    assert "left" in bar
    assert "\x1b[?25h" in terminal.getvalue()  # the cursor is shown again


@pytest.mark.parametrize("quiet", [False, True])
def test_the_log_has_all_with_times(
    tmp_path: Path, quiet: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        work(Progress(quiet), tmp_path / "log.txt")
    written = (tmp_path / "log.txt").read_text(encoding="utf-8").splitlines()
    assert lines_of("\n".join(line[26:] for line in written)) == 2 * LINES
    assert all(line[4] == line[7] == "-" and line[13] == ":" for line in written)


def test_the_log_of_a_terminal_has_lines_for_bars(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal_of(monkeypatch)
    work(Progress(), tmp_path / "log.txt")
    written = (tmp_path / "log.txt").read_text(encoding="utf-8").splitlines()
    assert lines_of("\n".join(line[26:] for line in written)) == LINES


def test_a_log_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    work(Progress(quiet=True), tmp_path)  # a folder


HOSTILE = "half \ud83d, \x1b[2Jof\x07 a\n  \tpair"


def test_nothing_in_a_text_is_obeyed_or_breaks_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for stream in (terminal_of(monkeypatch), io.StringIO()):
        monkeypatch.setattr(sys, "stderr", stream)
        progress = Progress()
        with progress.running(["score"], tmp_path / "log.txt"):
            progress.warn(HOSTILE)
        told = stream.getvalue()
        assert "half \ufffd, \ufffd[2Jof\ufffd a\n        pair" in told
        assert "\x1b[2J" not in told.replace("\x1b[2K", "")
        told.encode("utf-8")
    assert "half \\ud83d, " in (tmp_path / "log.txt").read_text(encoding="utf-8")


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
        assert datasets.are_progress_bars_disabled()
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
    assert not datasets.are_progress_bars_disabled()


def test_rate_and_time_left_leave_out_what_was_there_before() -> None:
    count = Count("x", 100, "rows")
    count.report(90)
    assert count.rate == 0
    assert count.seconds_left is None
    count._start -= 10
    count.report(95)
    assert count.rate == pytest.approx(0.5, rel=0.01)
    assert count.seconds_left == pytest.approx(10, rel=0.01)


def test_clock() -> None:
    assert [clock(s) for s in (0.4, 59.4, 200, 7500)] == ["0 s", "59 s", "3 min 20 s", "2 h 5 min"]


def test_progress_imports_nothing_heavy() -> None:
    code = (
        "import sys, json, gradsieve.console\n"
        "print(json.dumps(sorted({'rich', 'torch', 'transformers', 'psutil'} & set(sys.modules))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
