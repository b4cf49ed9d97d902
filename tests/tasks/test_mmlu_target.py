"""MMLU questions are read unchanged from the CSV files, and written as the paper's code does."""

from functools import partial
from pathlib import Path

import pytest

import hub_folders
from gradsieve.data.template import ChatTemplate
from gradsieve.demo.model import make_tokenizer
from gradsieve.errors import DataError
from gradsieve.tasks import load_target, load_test_set

ROW = "How many?,1,2,3,4,B\n"


def dev(folder: Path, text: str | bytes, subject: str = "some_subject") -> Path:
    file = folder / "dev" / f"{subject}_dev.csv"
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return file


refusal = partial(hub_folders.refusal, "mmlu")


def test_one_question_in_full(tmp_path: Path) -> None:
    dev(tmp_path, '"What, then, is\n""it""?",None,"a, b",c,No one,A\n')
    [example] = load_target("skill", "mmlu", str(tmp_path)).examples
    assert example.messages[0] == {
        "role": "user",
        "content": "The following are multiple choice questions (with answers) about  some subject."
        '\n\nWhat, then, is\n"it"?\nA. None\nB. a, b\nC. c\nD. No one\nAnswer:',
    }
    assert example.messages[1] == {"role": "assistant", "content": "The answer is: A"}
    assert example.answer_prefix == "The answer is:"
    assert (example.source, example.id, example.subtask) == (
        "skill",
        "some_subject-0",
        "some_subject",
    )


def test_all_of_an_answer_is_supervised_on_request(tmp_path: Path) -> None:
    dev(tmp_path, ROW)
    plain = load_target("t", "mmlu", str(tmp_path))
    whole = load_target("t", "mmlu", str(tmp_path), supervise="all")
    assert [one.messages for one in whole.examples] == [one.messages for one in plain.examples]
    assert whole.fingerprint != plain.fingerprint
    template = ChatTemplate(make_tokenizer())
    answer, turn = (
        "".join(text for text, flag in template.in_pieces(rendered)[1] if flag)
        for rendered in (template.render(one.examples[0]) for one in (plain, whole))
    )
    assert answer.strip() == "B"
    assert turn.split() == ["The", "answer", "is:", "B", "</s>"]


def test_only_the_first_five_questions_are_taken(tmp_path: Path) -> None:
    dev(tmp_path, "".join(f"Question {n}?,1,2,3,4,A\n" for n in range(7)))
    target = load_target("t", "mmlu", str(tmp_path))
    assert [example.id for example in target.examples] == [f"some_subject-{n}" for n in range(5)]
    assert "Question 4?" in target.examples[4].messages[0]["content"]


def test_subjects_are_in_alphabetical_order(tmp_path: Path) -> None:
    for subject in ("law", "law_a", "anatomy"):
        dev(tmp_path, ROW, subject)
    examples = load_target("t", "mmlu", str(tmp_path)).examples
    # By file name, law_a_dev.csv would come before law_dev.csv.
    assert [example.subtask for example in examples] == ["anatomy", "law", "law_a"]


@pytest.mark.parametrize(
    "text",
    [ROW + "\n\n" + ROW, (ROW + ROW).replace("\n", "\r\n"), "\ufeff" + ROW + ROW],
    ids=["blank lines", "windows line ends", "byte order mark"],
)
def test_what_other_programs_leave_behind_changes_nothing(tmp_path: Path, text: str) -> None:
    dev(tmp_path, ROW + ROW)
    plain = load_target("t", "mmlu", str(tmp_path))
    dev(tmp_path, text)
    assert load_target("t", "mmlu", str(tmp_path)) == plain


def test_hidden_files_are_no_subjects(tmp_path: Path) -> None:
    dev(tmp_path, ROW)
    plain = load_target("t", "mmlu", str(tmp_path))
    dev(tmp_path, b"\x00\x05\x16\x07", "._some_subject")  # as in archives made on a Mac
    assert load_target("t", "mmlu", str(tmp_path)) == plain


@pytest.mark.parametrize(
    ("bad", "line", "said"),
    [
        ("How many?,1,2,3,B\n", 4, "5 columns"),
        ("How many?,1,2,3,4,5,B\n", 4, "7 columns"),
        ("How many?,1,2,3,4,E\n", 4, "'E'"),
        ('"How many?,1,2,3,4,B\n' + ROW, 4, "1 columns"),
        (b"How \xff?,1,2,3,4,B\n", 4, "not UTF-8"),
        ("x" * 200_000 + ",1,2,3,4,B\n", 4, "Not CSV"),
    ],
    ids=["too few", "too many", "letter", "open quote", "encoding", "huge field"],
)
def test_a_bad_row_is_named_by_the_line_it_starts_at(
    tmp_path: Path, bad: str | bytes, line: int, said: str
) -> None:
    # Two rows on three lines precede it.
    before = ROW + '"How\nmany?",1,2,3,4,B\n'
    file = dev(tmp_path, before.encode() + (bad.encode() if isinstance(bad, str) else bad))
    error = refusal(tmp_path)
    assert said in f"{error.what} {error.where}"
    assert error.where.startswith(f"{file}:{line}")


def test_a_subject_without_questions_is_an_error(tmp_path: Path) -> None:
    dev(tmp_path, ROW, "law")
    file = dev(tmp_path, "\n", "anatomy")
    assert refusal(tmp_path).where == str(file)


def test_a_wrong_folder_says_what_is_there(tmp_path: Path) -> None:
    assert "no such folder" in refusal(tmp_path / "none").where
    assert "found an empty folder" in refusal(tmp_path).where
    (tmp_path / "test").mkdir()
    for name in "abcdef":
        (tmp_path / f"{name}.csv").touch()
    error = refusal(tmp_path)
    assert "found a.csv, b.csv, c.csv, d.csv, e.csv, and 2 more" in error.where
    assert "dev/SUBJECT_dev.csv" in error.todo
    assert "found a file" in refusal(tmp_path / "a.csv").where


def test_a_subject_with_test_questions_alone_is_named(tmp_path: Path) -> None:
    dev(tmp_path, ROW, "law")
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "anatomy_test.csv").write_text(ROW)
    with pytest.raises(DataError, match="no development questions for 1 of 1 subj") as caught:
        load_test_set("t", "mmlu", str(tmp_path), None)
    assert caught.value.where.endswith("e.g. anatomy")
