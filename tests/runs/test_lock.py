"""One process at a time, and nothing outside the run folder is touched."""

import errno
import fcntl
import os
from pathlib import Path

import pytest

from gradsieve.console import Progress
from gradsieve.errors import RunError
from gradsieve.runs.folder import RunFolder
from gradsieve.runs.lock import HOLDER


@pytest.mark.parametrize("name", [".lock", "log.txt", "01-warmup", "00-pool/dataset/mine.arrow"])
def test_no_link_is_followed_out_of_the_folder(tmp_path: Path, name: str) -> None:
    victim = tmp_path / "victim"
    victim.write_text("theirs")
    link = tmp_path / "run" / name
    link.parent.mkdir(parents=True)
    (tmp_path / "run" / ".lock").touch()
    link.unlink(missing_ok=True)
    link.symlink_to(victim)
    with pytest.raises(RunError) as caught, RunFolder(tmp_path / "run").locked():
        pass
    assert name in str(caught.value)
    assert victim.read_text() == "theirs"


def test_links_within_the_folder_and_to_it_are_no_hindrance(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "00-pool").mkdir(parents=True)
    (run / "latest").symlink_to("00-pool")
    (tmp_path / "link").symlink_to(run)
    with RunFolder(tmp_path / "link").locked():
        pass


def test_the_log_is_no_link(tmp_path: Path) -> None:
    """This includes a log that becomes a link after the check."""
    victim = tmp_path / "victim"
    victim.write_text("theirs")
    (tmp_path / "log.txt").symlink_to(victim)
    progress = Progress(quiet=True)
    with progress.running([], tmp_path / "log.txt"):
        progress.say("a line")
    assert victim.read_text() == "theirs"


def test_locking_truncates_nothing(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.claim()
    (tmp_path / ".lock").write_text("kept")
    with run.locked():
        pass
    assert (tmp_path / ".lock").read_text() == "kept"


def test_a_file_system_without_flock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    run, holder = RunFolder(tmp_path), tmp_path / HOLDER
    with run.locked():
        assert str(os.getpid()) in holder.read_text()
        with pytest.raises(RunError, match="Another gradsieve process") as caught, run.locked():
            pass
        assert str(holder) in caught.value.todo
    assert not holder.exists()
    holder.write_text(f"{os.uname().nodename} 999999999")  # left by a killed process
    with run.locked():
        pass
    holder.write_text(f"another-host {os.getpid()}")
    with pytest.raises(RunError, match="Another gradsieve process"), run.locked():
        pass


def test_a_path_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    with pytest.raises(RunError, match="not UTF-8"), RunFolder(folder).locked():
        pass


def test_a_copy_by_hard_links_shares_the_lock_and_the_message_says_so(tmp_path: Path) -> None:
    run, copy = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "copy")
    with run.locked():
        copy.path.mkdir()
        (copy.path / ".lock").hardlink_to(run.path / ".lock")
        with pytest.raises(RunError) as caught, copy.locked():
            pass
        assert f"hard links, delete its {copy.path / '.lock'}" in caught.value.todo
        (copy.path / ".lock").unlink()
        with copy.locked(), pytest.raises(RunError), run.locked():
            pass
