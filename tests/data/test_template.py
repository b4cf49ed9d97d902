"""Labels cover the assistant's text and the end of its turns, for every kind of template."""

import random
import signal
from array import array
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from conversations import byte_tokenizer
from gradsieve.data.examples import Example, Message
from gradsieve.data.rendering import TULU
from gradsieve.data.sources import read_source
from gradsieve.data.template import ChatTemplate, Refusal
from gradsieve.data.tokens import labels_of
from gradsieve.errors import DataError, ModelError
from gradsieve.recipe.schema import LimitsConfig

QWEN3 = """{%- if messages[0].role == 'system' %}{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}{%- endif %}
{%- set ns = namespace(last=0) %}{%- for m in messages %}{%- if m.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}
{%- for m in messages %}{%- if m.role == 'user' %}{{- '<|im_start|>user\\n' + m.content + '<|im_end|>\\n' }}
{%- elif m.role == 'assistant' %}{{- '<|im_start|>assistant\\n' }}{%- if loop.index0 > ns.last %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}{{- m.content + '<|im_end|>\\n' }}{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""  # noqa: E501
LLAMA3 = """{{- bos_token }}{%- if not date_string is defined %}{%- set date_string = strftime_now('%d %b %Y') %}{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: ' + date_string + '\\n\\n<|eot_id|>' }}
{%- for m in messages %}{{- '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + m.content | trim + '<|eot_id|>' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"""  # noqa: E501
GEMMA = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- for m in messages %}{% set role = 'model' if m.role == 'assistant' else m.role %}{{ '<start_of_turn>' + role + '\\n' + m.content | trim + '<end_of_turn>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""  # noqa: E501
MISTRAL = """{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}{% else %}{{ ' ' + m.content | trim + eos_token }}{% endif %}{% endfor %}"""  # noqa: E501
GENERATION = """{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}{% if m.role == 'assistant' %}{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}{% else %}{{ m.content + '<|im_end|>' }}{% endif %}{{ '\\n' }}{% endfor %}"""  # noqa: E501

SPECIAL = [
    "<|im_start|>",
    "<|im_end|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<start_of_turn>",
    "<end_of_turn>",
]
TURNS: tuple[Message, ...] = (
    {"role": "user", "content": "Say yes or no."},
    {"role": "assistant", "content": "yes or no"},
    {"role": "user", "content": "yes"},
    {"role": "assistant", "content": "yes\nno "},
)


def tokenizer(template: str | None = None, eos: str | None = "</s>") -> PreTrainedTokenizerBase:
    """A tokenizer with one token per byte: nothing is merged, so labels read as text."""
    made = byte_tokenizer([], template)
    made.add_special_tokens({"additional_special_tokens": SPECIAL})
    made.eos_token = eos
    return made


@pytest.mark.parametrize(
    ("text", "end", "newline"),
    [
        (LLAMA3, "<|eot_id|>", ""),
        (GEMMA, "<end_of_turn>", "\n"),
        (MISTRAL, "</s>", ""),
        (GENERATION, "<|im_end|>", ""),
    ],
    ids=["llama3", "gemma", "mistral", "generation"],
)
def test_all_assistant_turns_and_their_ends(text: str, end: str, newline: str) -> None:
    template = ChatTemplate(tokenizer(text))
    rendered = template.render(Example("s", "1", TURNS))
    first, second = (rendered.text[start:stop] for start, stop in rendered.spans)
    assert first.lstrip() == f"yes or no{end}{newline}"
    ids = template.tokenizer.convert_tokens_to_ids(["</s>", end])
    assert set(template.ends) == set(ids)
    assert second.lstrip() in (f"yes\nno{end}{newline}", f"yes\nno {end}")


def test_qwen3_writes_an_empty_thought_in_the_last_turn_only() -> None:
    rendered = ChatTemplate(tokenizer(QWEN3)).render(Example("s", "1", TURNS))
    assert [rendered.text[start:stop] for start, stop in rendered.spans] == [
        "yes or no<|im_end|>\n",
        "<think>\n\n</think>\n\nyes\nno <|im_end|>\n",
    ]


def test_labels_are_the_tokens_of_the_spans() -> None:
    template = ChatTemplate(tokenizer(MISTRAL))
    encoded = template.encode(Example("s", "1", TURNS))
    kept = [label for label in encoded.labels if label != -100]
    assert template.tokenizer.decode(kept) == " yes or no</s> yes\nno</s>"
    pairs = zip(encoded.labels, encoded.input_ids, strict=True)
    assert all(label in (-100, token) for label, token in pairs)
    assert encoded.n_labels == len(kept)
    assert encoded.input_ids.count(template.tokenizer.bos_token_id) == 1


def test_dates_do_not_change_tokens() -> None:
    text = ChatTemplate(tokenizer(LLAMA3)).render(Example("s", "1", TURNS)).text
    assert "Today Date: 26 Jul 2024" in text


def test_tulu_is_the_papers_format() -> None:
    messages: tuple[Message, ...] = ({"role": "system", "content": "S"}, *TURNS)
    rendered = ChatTemplate(tokenizer(), "tulu").render(Example("s", "1", messages))
    assert rendered.text == (
        "<|system|>\nS\n<|user|>\nSay yes or no.\n<|assistant|>\nyes or no</s>\n"
        "<|user|>\nyes\n<|assistant|>\nyes\nno</s>\n"
    )
    assert [rendered.text[a:b] for a, b in rendered.spans] == ["yes or no</s>\n", "yes\nno</s>\n"]


def test_tulu_gives_the_released_codes_tokens_and_labels() -> None:
    """Written by hand: one token per byte, `</s>` one token; newlines after it are labels."""
    made = tokenizer()
    end = made.eos_token_id
    one, two = "<|user|>\nyes\n<|assistant|>\n", "<|user|>\nand?\n<|assistant|>\n"
    pieces: list[tuple[str, bool]] = [(one, False), ("no", True), (two, False), ("no no", True)]
    for turns in (1, 2):
        ids: list[int] = []
        labels: list[int] = []
        for text, supervised in pieces[: 2 * turns]:
            tokens = made(text, add_special_tokens=False).input_ids
            tokens += [end, *made("\n", add_special_tokens=False).input_ids] * supervised
            ids += tokens
            labels += tokens if supervised else [-100] * len(tokens)
        messages: tuple[Message, ...] = (
            {"role": "user", "content": "yes\n"},
            {"role": "assistant", "content": " no "},
            {"role": "user", "content": "and?"},
            {"role": "assistant", "content": "no no"},
        )
        encoded = ChatTemplate(made, "tulu").encode(Example("s", "1", messages[: 2 * turns]))
        assert (encoded.input_ids.tolist(), encoded.labels.tolist()) == (ids, labels)


@pytest.mark.parametrize("text", [QWEN3, GENERATION], ids=["qwen3", "generation"])
def test_an_answer_prefix_stands_where_the_template_puts_an_answer(text: str) -> None:
    messages: tuple[Message, ...] = (
        {"role": "user", "content": "Q"},
        {"role": "assistant", "content": "The answer is: B"},
    )
    example = Example("t", "1", messages, answer_prefix="The answer is:")
    template = ChatTemplate(tokenizer(text))
    rendered = template.render(example)
    written = template.tokenizer.apply_chat_template(list(messages), tokenize=False)
    assert written.startswith(rendered.text)
    [(start, end)] = rendered.spans
    assert rendered.text[start:end] == " B"
    assert template.prompt(messages[:1], "The answer is:") == rendered.text[:start]


def test_a_question_ends_where_the_answer_starts() -> None:
    asked: list[Message] = [{"role": "user", "content": "Q"}]
    start = "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n"
    template = ChatTemplate(tokenizer(QWEN3))
    # The white space before the answer is generated: it may share a token with the answer.
    assert template.prompt(asked) == f"{start}<think>\n\n</think>"
    assert ChatTemplate(tokenizer(MISTRAL)).prompt(asked) == "<s>[INST] Q [/INST]"
    reasons: Message = {"role": "assistant", "content": "<think>\na\n</think>\n\nb"}
    assert ChatTemplate(tokenizer(GEMMA)).prompt(asked, answer=reasons).endswith("model\n")


def test_refusals_are_collected() -> None:
    system: Message = {"role": "system", "content": "S"}
    examples = [
        Example("s", "0", TURNS),
        Example("s", "1", (system, *TURNS), where="a.jsonl:2"),
        Example("s", "2", TURNS),
        Example("s", "3", (system, *TURNS), where="a.jsonl:4"),
    ]
    template = ChatTemplate(tokenizer(GEMMA))
    first, second, third, fourth = template.try_encode_all(examples)
    assert first == third == template.encode(examples[0])
    assert isinstance(second, Refusal)
    assert isinstance(fourth, Refusal)
    assert second.where == "a.jsonl:2 (s, 1)"
    assert second.skip_reason == "the chat template refuses it: System role not supported"
    with pytest.raises(DataError) as caught:
        template.try_encode_all(examples, "fail")
    assert caught.value.what == "The chat template refuses 2 of 4 examples."
    assert caught.value.where.startswith("a.jsonl:2 (s, 1): ['system', 'user'")


@pytest.mark.parametrize("name", ["tulu", "tokenizer"])
def test_a_template_can_be_pickled(name: str) -> None:
    template = ChatTemplate(tokenizer(QWEN3), name)
    example = Example("s", "1", TURNS)
    copied = ForkingPickler.loads(ForkingPickler.dumps(template))
    assert copied.encode(example) == template.encode(example)
    assert copied.fingerprint == template.fingerprint


def test_the_callers_tokenizer_is_not_changed() -> None:
    made = tokenizer(QWEN3)
    made(["yes no"], truncation=True, max_length=4)
    before = made.backend_tokenizer.to_str()
    ChatTemplate(made).encode(Example("s", "1", TURNS))
    assert made.backend_tokenizer.to_str() == before


def test_answer_prefix_is_given_and_only_the_rest_is_supervised() -> None:
    messages: tuple[Message, ...] = (
        {"role": "user", "content": "Q\nAnswer:"},
        {"role": "assistant", "content": "The answer is: B"},
    )
    example = Example("t", "1", messages, answer_prefix="The answer is:")
    template = ChatTemplate(tokenizer(), "tulu")
    rendered = template.render(example)
    assert rendered.text == "<|user|>\nQ\nAnswer:\n<|assistant|>\nThe answer is: B"
    encoded = template.encode(example)
    assert template.tokenizer.decode([t for t in encoded.labels if t != -100]) == " B"
    wrong = Example("t", "1", messages, answer_prefix="A:")
    with pytest.raises(DataError, match="does not start with"):
        template.encode(wrong)


def test_truncation_on_the_right_and_skipped_rows() -> None:
    template = ChatTemplate(tokenizer(), "tulu", max_length=40)
    encoded = template.encode(Example("s", "1", TURNS))
    assert len(encoded.input_ids) == 40
    assert encoded.truncated
    assert encoded.skip_reason is None
    short = ChatTemplate(tokenizer(), "tulu", max_length=10).encode(Example("s", "1", TURNS))
    assert short.skip_reason == "no label token within the first 10 tokens"


def test_many_at_once_are_the_same_as_one_by_one() -> None:
    template = ChatTemplate(tokenizer(QWEN3))
    examples = [
        Example("s", str(i), ({"role": "user", "content": "é日" * i}, TURNS[1])) for i in range(5)
    ]
    assert template.try_encode_all(examples) == [template.encode(example) for example in examples]


@pytest.mark.parametrize(
    ("made", "template", "said"),
    [
        (tokenizer(), "tokenizer", "no chat template"),
        (tokenizer(eos=None), "tulu", "end-of-sequence token"),
        (tokenizer(), "no/such.jinja", "cannot be read"),
    ],
)
def test_templates_that_cannot_be_used(
    made: PreTrainedTokenizerBase, template: str, said: str
) -> None:
    with pytest.raises(ModelError, match=said):
        ChatTemplate(made, template)


def test_a_template_file(tmp_path: Path) -> None:
    file = tmp_path / "chat.jinja"
    file.write_text(GENERATION)
    template = ChatTemplate(tokenizer(), str(file))
    assert template.render(Example("s", "1", TURNS)).text.startswith("<|im_start|>user\n")
    file.write_text("{% for %}")
    with pytest.raises(ModelError, match="not Jinja"):
        ChatTemplate(tokenizer(), str(file))


def test_a_refused_example_is_named() -> None:
    messages: tuple[Message, ...] = ({"role": "system", "content": "S"}, *TURNS)
    with pytest.raises(DataError) as caught:
        ChatTemplate(tokenizer(GEMMA)).encode(Example("dolly", "row-7", messages))
    assert caught.value.what == "The chat template refuses 1 of 1 examples."
    assert "System role not supported" in caught.value.where
    assert "dolly, row-7" in caught.value.where


def test_fingerprint_sees_what_changes_tokens() -> None:
    prints = {
        ChatTemplate(tokenizer(MISTRAL)).fingerprint,
        ChatTemplate(tokenizer(GEMMA)).fingerprint,
        ChatTemplate(tokenizer(MISTRAL), max_length=99).fingerprint,
        ChatTemplate(tokenizer(MISTRAL), "tulu").fingerprint,
    }
    assert len(prints) == 4
    assert ChatTemplate(tokenizer(MISTRAL)).fingerprint in prints


def test_fingerprint_tells_who_adds_special_tokens(tmp_path: Path) -> None:
    file = tmp_path / "same.jinja"
    file.write_text(TULU.read_text())
    own, copied = ChatTemplate(tokenizer(), "tulu"), ChatTemplate(tokenizer(), str(file))
    assert own.fingerprint != copied.fingerprint


def test_fingerprint_is_the_same_after_the_tokenizer_was_used() -> None:
    used = tokenizer(MISTRAL)
    used(["yes no"], truncation=True, max_length=4)
    assert ChatTemplate(used).fingerprint == ChatTemplate(tokenizer(MISTRAL)).fingerprint


def released_labels(
    made: PreTrainedTokenizerBase, messages: tuple[Message, ...]
) -> tuple[list[int], list[int]]:
    """The rule in LESS's released code: non-assistant turns are masked by token counts."""

    def joined(turns: tuple[Message, ...]) -> str:
        ends = {"assistant": str(made.eos_token)}
        return "".join(
            f"<|{t['role']}|>\n{t['content'].strip()}{ends.get(t['role'], '')}\n" for t in turns
        )

    ids = made(joined(messages)).input_ids
    labels = list(ids)
    for turn, message in enumerate(messages):
        if message["role"] == "assistant":
            continue
        start = len(made(joined(messages[:turn])).input_ids) if turn else 0
        end = len(made(joined(messages[: turn + 1]) + "<|assistant|>\n").input_ids)
        labels[start:end] = [-100] * (end - start)
    return ids, labels


@pytest.fixture(scope="module")
def real_rows(shared_data: Path) -> dict[str, list[Example]]:
    """The first 300 rows of each of two large sources."""
    files = {name: str(shared_data / "train" / f"{name}.jsonl") for name in ("oasst1", "dolly")}
    return {name: read_source(name, file).examples[:300] for name, file in files.items()}


@pytest.mark.parametrize("name", ["pythia", "gpt2", "mistral-v1"])
def test_equals_the_released_code_on_real_rows(
    shared_data: Path, real_rows: dict[str, list[Example]], name: str
) -> None:
    made = AutoTokenizer.from_pretrained(shared_data / "tokenizers" / name)
    template = ChatTemplate(made, "tulu", max_length=100_000)
    several = 0
    for example in real_rows["oasst1"][:150]:
        encoded = template.encode(example)
        several += len(example.messages) > 2
        found = encoded.input_ids.tolist(), encoded.labels.tolist()
        assert found == released_labels(made, example.messages)
    assert several


@pytest.mark.parametrize("name", ["pythia", "gpt2", "mistral-v1"])
def test_real_answers_come_back_from_labels(
    shared_data: Path, real_rows: dict[str, list[Example]], name: str
) -> None:
    made = AutoTokenizer.from_pretrained(shared_data / "tokenizers" / name)
    template = ChatTemplate(made, "tulu", max_length=100_000)
    for example in real_rows["dolly"]:
        encoded = template.encode(example)
        kept = made.decode([label for label in encoded.labels if label != -100])
        assert kept.strip() == example.messages[-1]["content"].strip() + made.eos_token


def labels_by_offsets(ids: list[int], offsets: list, spans: list) -> list[int]:
    """The straightforward implementation, token by token."""
    hit = [any(a < end and start < b for start, end in spans) for a, b in offsets]
    return [token if flag else -100 for token, flag in zip(ids, hit, strict=True)]


def backends() -> dict[str, Tokenizer]:
    """One token per byte; byte fallback like Llama's; words without their white space."""
    byte = byte_tokenizer([]).backend_tokenizer
    pieces = [f"<0x{number:02X}>" for number in range(256)] + ["<unk>", "▁", "a", "b", "▁a"]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    llama = Tokenizer(models.BPE(vocabulary, [("▁", "a")], byte_fallback=True, unk_token="<unk>"))
    replace = normalizers.Replace(" ", "▁")
    llama.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace])
    words = Tokenizer(models.WordLevel({"a": 0, "b": 1, "<unk>": 2}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    for backend in (byte, llama, words):
        backend.add_special_tokens(["</s>"])
        backend.post_processor = processors.TemplateProcessing(
            single="</s> $A </s>", special_tokens=[("</s>", backend.token_to_id("</s>"))]
        )
    return {"bytes": byte, "llama": llama, "words": words}


@pytest.mark.parametrize("name", ["bytes", "llama", "words"])
def test_labels_are_the_tokens_that_overlap_a_span(name: str) -> None:
    backend, draw = backends()[name], random.Random(0)
    for _ in range(300):
        text = "".join(draw.choice(["a", "b", " ", "\n", "é", "三", "</s>"]) for _ in range(20))
        cuts = sorted(draw.sample(range(len(text) + 1), 4))
        spans = [(cuts[0], cuts[1]), (cuts[2], cuts[3])]
        encoding = backend.encode(text)
        expected = labels_by_offsets(encoding.ids, encoding.offsets, spans)
        assert labels_of(array("i", encoding.ids), encoding, spans).tolist() == expected, (
            text,
            spans,
        )


def test_a_template_that_loops_is_ended(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGALRM)
    loop = "{% for i in range(99999) %}"
    (tmp_path / "loop.jinja").write_text(loop * 3 + "{% endfor %}" * 3)
    limits = LimitsConfig(render_seconds=0.1)
    template = ChatTemplate(tokenizer(), str(tmp_path / "loop.jinja"), limits=limits)
    turns: tuple[Message, ...] = ({"role": "user", "content": "q"},)
    with pytest.raises(DataError, match=r"more than 0.1 s") as caught:
        template.render(Example("s", "7", turns))
    assert caught.value.where == "s 7"
    assert signal.getsignal(signal.SIGALRM) is before


@pytest.mark.parametrize(
    "written",
    [
        "{{ x }}",
        "{% macro a() %}{{ x }}{% endmacro %}{{ a()[:1] }}",
        "{% generation %}{{ x }}{% endgeneration %}",
    ],
)
def test_a_template_that_writes_too_much_is_ended(written: str, tmp_path: Path) -> None:
    """The limit holds for output, for text captured by a macro, and inside generation marks."""
    turns = "{% for m in messages %}{{ m.content }}{% endfor %}"
    file = tmp_path / "long.jinja"
    file.write_text(f"{{% set x = messages[0].content * 9 %}}{turns}{written}")
    template = ChatTemplate(tokenizer(), str(file), limits=LimitsConfig(render_characters=1500))
    short, long = (
        Example("s", "7", ({"role": "user", "content": "x" * size}, TURNS[1]))
        for size in (100, 200)
    )
    template.render(short)
    with pytest.raises(DataError, match="writes more than 1500 characters") as caught:
        template.render(long)
    assert caught.value.where == "s 7"
    assert "limits.render_characters" in caught.value.todo
