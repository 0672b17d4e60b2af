"""Rows beyond a length: dropped, cut without a false ending, or split; nothing is trained twice."""

from itertools import pairwise

import pytest
from chat_templates import THINKING, make_tokenizer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sft.chat_template.encoding import EncodedChat, encode_chat, encode_chats, encode_prompt
from sft.chat_template.template import ensure_template
from sft.config.sections import Source
from sft.data.sources import read_sft
from sft.errors import UserError
from sft.tokenization.row_checks import Rules, check_row
from sft.tokenization.truncation import count_turns, encode_and_split, split_rounds, truncate_row

QUIET = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
END = 9
RULES = Rules(stops=frozenset({END}), bos=None, leading_bos=0)


def chat(*texts, system=None):
    lead = [{"role": "system", "content": system}] if system else []
    return lead + [
        {"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)
    ]


def test_docstring_example():
    row = EncodedChat([1, 2, 3, 4, END], [False, False, True, True, True])
    for policy in ("drop", "split"):
        assert truncate_row(row, max_length=4, too_long=policy, bos=None) == []
        (whole,) = truncate_row(row, max_length=5, too_long=policy, bos=None)
        assert (whole.input_ids, whole.cut) == (row.input_ids, False)
    (cut,) = truncate_row(row, max_length=4, too_long="truncate", bos=None)
    assert (cut.input_ids, cut.trained, cut.cut) == ([1, 2, 3, 4], [0, 0, 1, 1], True)
    assert truncate_row(row, max_length=2, too_long="truncate", bos=None) == [], "never to empty"


# Rows of several turns: prompts of ids 1 to 3, answers of 4 to 6 that end with END.
ROWS = st.lists(
    st.tuples(
        st.lists(st.integers(1, 3), min_size=1, max_size=4),
        st.lists(st.integers(4, 6), min_size=1, max_size=4),
    ),
    min_size=1,
    max_size=4,
)


@settings(deadline=None)
@given(turns=ROWS, length=st.integers(1, 20))
def test_truncation_keeps_a_prefix_and_invents_no_ending(turns, length):
    ids, trained = [], []
    for asked, said in turns:
        ids += [*asked, *said, END]
        trained += [False] * len(asked) + [True] * (len(said) + 1)
    fitted = truncate_row(
        EncodedChat(ids, trained), max_length=length, too_long="truncate", bos=None
    )
    if not any(trained[:length]):
        assert fitted == []
        return
    (piece,) = fitted
    size = len(piece.input_ids)
    assert size <= max(length, 0) or size == len(ids)
    assert piece.input_ids == ids[:size] and piece.trained == trained[:size]
    # No trained token within the length is lost, and only a complete answer ends with the stop.
    assert sum(piece.trained) == sum(trained[:length])
    assert piece.cut == (piece.input_ids[-1] != END)
    assert check_row(piece.input_ids, piece.trained, rules=RULES, cut=piece.cut)[1] == []


@pytest.mark.parametrize("bos", [None, 7])
@settings(deadline=None)
@given(size=st.integers(2, 9), length=st.integers(1, 30))
def test_windows_of_a_text_train_every_token_once(bos, size, length):
    ids = ([bos] if bos else []) + [100 + i for i in range(length)] + [END]
    row = EncodedChat(ids, [False] + [True] * (len(ids) - 1))
    pieces = truncate_row(row, max_length=size, too_long="split", bos=bos)
    trained = [
        token
        for piece in pieces
        for token, flag in zip(piece.input_ids, piece.trained, strict=True)
        if flag
    ]
    assert trained == ids[1:]
    assert all(len(piece.input_ids) <= size for piece in pieces)
    assert [piece.cut for piece in pieces] == [True] * (len(pieces) - 1) + [False]
    rules = Rules(frozenset({END}), bos, leading_bos=int(bos is not None))
    for piece in pieces:
        if bos or piece is pieces[0]:
            assert check_row(piece.input_ids, piece.trained, rules=rules, cut=piece.cut)[1] == []


def test_rounds_begin_where_the_user_speaks_after_an_answer():
    tool = {"role": "tool", "content": "2"}
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f"}}]}
    user, answer = chat("a", "b")
    lead, rounds = split_rounds([*chat(system="s"), user, user, call, tool, answer, user, answer])
    assert lead == chat(system="s")
    assert rounds == [[user, user, call, tool, answer], [user, answer]]


@settings(max_examples=60, deadline=None, suppress_health_check=QUIET)
@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=8),
    system=st.sampled_from([None, "be brief"]),
    size=st.integers(70, 160),
)
def test_a_split_chat_says_each_answer_once_after_its_system_turn(
    lengths, system, size, tiny_tokenizer
):
    ensure_template(tiny_tokenizer)
    texts = [t for i, n in enumerate(lengths) for t in (f"q{i}", chr(ord("a") + i) * n)]
    row = {"messages": chat(*texts, system=system), "origin": "f:1", "kind": "k"}
    found = list(encode_and_split(tiny_tokenizer, [row], turns="all", split_at=size))
    said = [m["content"] for piece, _ in found for m in piece["messages"] if m["role"] != "system"]
    assert said == texts
    whole = encode_chat(tiny_tokenizer, row["messages"])
    assert sum(sum(e.trained) for _, e in found) == sum(whole.trained)
    for piece, encoded in found:
        assert encoded == encode_chat(tiny_tokenizer, piece["messages"])
        assert piece["origin"] == "f:1"
        assert (piece["messages"][0]["role"] == "system") == (system is not None)
        assert len(encoded.input_ids) <= size or len(split_rounds(piece["messages"])[1]) == 1
    for (one, _), (two, _) in pairwise(found):
        lead, rounds = split_rounds(two["messages"])
        longer = lead + [m for r in (split_rounds(one["messages"])[1][-1], *rounds) for m in r]
        assert len(encode_chat(tiny_tokenizer, longer).input_ids) > size, "as long as fits"


def test_where_the_last_answer_alone_is_trained_the_last_piece_alone_is_kept(tiny_tokenizer):
    ensure_template(tiny_tokenizer)
    row = {"messages": chat("a", "b" * 50, "c", "d" * 50), "origin": "f:1", "kind": "k"}
    ((piece, encoded),) = encode_and_split(tiny_tokenizer, [row], turns="last", split_at=100)
    assert [m["content"] for m in piece["messages"]] == ["c", "d" * 50]
    assert sum(encoded.trained) == 51


def test_texts_and_bad_rows_pass_in_their_places(tiny_tokenizer):
    ensure_template(tiny_tokenizer)
    rows = [{"text": "x" * 99}, {"messages": chat("a")}, {"messages": chat("a", "b")}]
    (_, text), (_, bad), (_, good) = encode_and_split(
        tiny_tokenizer, rows, turns="all", split_at=50
    )
    assert len(text.input_ids) == 100 and text.input_ids[-1] == tiny_tokenizer.eos_token_id
    assert text.trained == [False] + [True] * 99
    assert isinstance(bad, UserError)
    assert good == next(encode_chats(tiny_tokenizer, rows[2:]))


WITH_CALLS = THINKING.replace(
    "+ c + '<", "+ c + (m.tool_calls | tojson if m.tool_calls else '') + '<"
)


def test_each_turn_has_a_row_with_the_prompt_that_it_is_generated_from(tiny_tokenizer):
    """Qwen3 writes an empty thinking block in the last turn alone."""
    tiny_tokenizer.chat_template = THINKING
    messages = chat("a", "b", "c", "d", "e", "f", system="s")
    rows = [
        {"messages": messages, "origin": "f:1", "kind": "k"},
        {"text": "plain", "origin": "f:2", "kind": "k"},
    ]
    found = list(encode_and_split(tiny_tokenizer, rows, turns="each", split_at=None))
    assert [row["origin"] for row, _ in found] == ["f:1", "f:1", "f:1", "f:2"]
    for (_, encoded), end in zip(found, (3, 5, 7), strict=False):
        prompt = encode_prompt(tiny_tokenizer, messages[: end - 1])
        assert encoded.input_ids[: len(prompt)] == prompt
        assert not any(encoded.trained[: len(prompt)])
        trained = [i for i, flag in zip(encoded.input_ids, encoded.trained, strict=True) if flag]
        answer = messages[end - 1]["content"]
        assert tiny_tokenizer.decode(trained) == f"<think>\n\n</think>\n\n{answer}<|im_end|>"
        assert encoded.untrained_turns == 0
    (whole,) = encode_chats(tiny_tokenizer, rows[:1])
    assert whole.untrained_turns == 2


def test_of_each_turn_those_that_the_template_cannot_write_last_are_counted(tiny_tokenizer):
    tiny_tokenizer.chat_template = (
        "{% if messages | length == 2 and messages[0].content == 'a' %}"
        "{{ raise_exception('too short') }}{% endif %}" + THINKING
    )
    ensure = {"origin": "f:1", "kind": "k"}
    rows = [{"messages": chat("a", "b", "c", "d"), **ensure}, {"messages": chat("a"), **ensure}]
    (_, kept), (_, bad) = encode_and_split(tiny_tokenizer, rows, turns="each", split_at=None)
    assert kept.untrained_turns == 1 and isinstance(bad, UserError)


@pytest.mark.real
def test_all_turns_of_real_tool_calls_are_trained(real_data):
    path = str(real_data / "sft/lf_glaive_toolcall_en_demo.jsonl")
    rows = read_sft([Source(path=path, kind="k")], on_error="drop").rows
    assistant = sum(m["role"] == "assistant" for row in rows for m in row["messages"])
    tokenizer = make_tokenizer(WITH_CALLS)

    def counts(turns):
        encoded = [e for _, e in encode_and_split(tokenizer, rows, turns=turns, split_at=None)]
        trained = sum(count_turns(row.trained) for row in encoded)
        return len(encoded), trained, sum(row.untrained_turns for row in encoded)

    assert counts("all") == (len(rows), len(rows), assistant - len(rows))
    assert counts("each") == (assistant, assistant, 0)
