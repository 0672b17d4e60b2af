"""Text that a tokenizer cannot write is counted in characters, shown by source, and refused."""

import io

import pytest
from rich.console import Console
from tiny_models import make_tiny_tokenizer
from tiny_world import chat
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from eval.measures.dry_run import SilentBackend
from eval.tasks.lm_eval_model import LmEvalModel
from sft.chat_template.template import ensure_template
from sft.chat_template.tokenizer_coverage import Coverage, CoverageCount
from sft.cleaning.decontamination import Benchmarks
from sft.config.sections import DataSection, ModelSection, Source
from sft.context import RunContext
from sft.errors import UserError
from sft.model.placement import choose_placement
from sft.system.atomic_files import write_jsonl
from sft.tokenization.prepare import prepare_chats, rows_of_stage
from sft.tokenization.row_checks import Rules, stage_table

LETTERS = [chr(c) for c in range(33, 127)]
TEXT = "say 海很平静 now"  # 11 characters, 4 of them Chinese


def fast(model, *, specials=("<s>", "</s>"), normalizer=None):
    core = Tokenizer(model)
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    if normalizer is not None:
        core.normalizer = normalizer
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="</s>", pad_token="</s>", unk_token="<unk>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return tokenizer


def bpe(**options):
    tokens = ["<unk>", "</s>", "▁", "\n", *LETTERS, *options.pop("more", [])]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    return models.BPE(vocab=vocabulary, merges=[], **options)


BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def unigram():
    tokens = ["<unk>", "</s>", "▁", "\n", *LETTERS]
    return models.Unigram([(token, -1.0) for token in tokens], unk_id=0, byte_fallback=False)


def words():
    return models.WordLevel({"<unk>": 0, "▁say": 1, "▁now": 2, "</s>": 3}, unk_token="<unk>")


@pytest.mark.parametrize(
    ("model", "lost"),
    [
        (bpe(unk_token="<unk>"), 4),
        (bpe(unk_token="<unk>", fuse_unk=True), 4),  # one token for all of them
        (bpe(), 4),  # no token at all
        (unigram(), 4),
        (words(), 4),
        (bpe(unk_token="<unk>", byte_fallback=True, more=BYTES), 0),
    ],
)
def test_characters_without_a_token_are_lost_whatever_stands_for_them(model, lost):
    coverage = Coverage.of(fast(model))
    assert coverage.count([TEXT, "say now"]) == CoverageCount(10 + 6, lost)
    assert coverage.altered([TEXT, "say now"]) == CoverageCount(10 + 6, lost)
    assert coverage.count([]) == CoverageCount() and CoverageCount().share == 0


def test_a_byte_level_tokenizer_loses_the_bytes_that_it_lacks(tiny_tokenizer):
    tiny_tokenizer.unk_token = tiny_tokenizer.eos_token  # as GPT-2's configuration has it
    coverage = Coverage.of(tiny_tokenizer)
    assert not coverage.loses and coverage.unknown is None
    vocabulary = make_tiny_tokenizer().get_vocab()
    del vocabulary["æ"]  # the byte 0xE6, with which 海 begins
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(False), decoders.ByteLevel()
    lacking = Coverage.of(PreTrainedTokenizerFast(tokenizer_object=core))
    assert lacking.count(["say 很"]) == CoverageCount(4, 0)
    assert lacking.altered(["say 海"]).lost > 0


def test_a_normalizer_that_changes_text_alters_it(tiny_tokenizer):
    lower = Coverage.of(fast(bpe(unk_token="<unk>"), normalizer=normalizers.Lowercase()))
    assert lower.count(["Say NOW"]) == CoverageCount(6, 0)
    assert lower.altered(["Say NOW"]) == CoverageCount(6, 4)


def test_real_tokenizers_write_chinese_but_for_one_of_english(real_data):
    for name in ("gpt2", "qwen2.5", "deepseek-llm", "chatlm-zh"):
        tokenizer = AutoTokenizer.from_pretrained(real_data / "tokenizers" / name)
        assert Coverage.of(tokenizer).count(["海很平静。"]).lost == 0, name
    poems = AutoTokenizer.from_pretrained(real_data / "models" / "poem-zh-750k")
    assert Coverage.of(poems).count(["The sea is calm."]).share > 0.5


@pytest.fixture
def english():
    """A tokenizer of English letters with a chat template, which fuses unknown text."""
    tokenizer = fast(bpe(unk_token="<unk>", fuse_unk=True))
    ensure_template(tokenizer)
    return tokenizer


def prepared(tokenizer, folder, **context):
    chinese = [{"messages": chat("say this", "海很平静" * 9), "kind": "dialogue"}] * 3
    plain = [{"messages": chat(f"say {i}", "now"), "kind": "math"} for i in range(30)]
    write_jsonl(folder / "zh.jsonl", [c | {"id": i} for i, c in enumerate(chinese)])
    write_jsonl(folder / "en.jsonl", plain)
    section = DataSection(
        sft=[Source(str(folder / "en.jsonl")), Source(str(folder / "zh.jsonl"))], near_duplicates=0
    )
    placement = choose_placement(ModelSection(dtype="float32"))
    whole = RunContext(folder, tokenizer, placement, None, 0, False, **context)
    chats = prepare_chats(section, whole, benchmarks=Benchmarks("", dict))
    return chats, section


def test_rows_that_the_tokenizer_cannot_write_stop_the_run_by_their_source(english, tmp_path):
    words = r"zh.jsonl: 8\d\.\d% of the characters .*vocabulary.*model.max_unknown=0.03"
    with pytest.raises(UserError, match=words):
        prepared(english, tmp_path)


def test_rows_that_may_be_lost_are_shown_with_their_share_of_unknown_tokens(english, tmp_path):
    chats, section = prepared(english, tmp_path, max_unknown=1.0)
    rules = Rules.of(english)
    found = rows_of_stage(
        chats, kinds=[], max_length=None, rules=rules, section=section, where="sft_all"
    )
    tallies = {kind: tally for (_, kind), tally in found.checked.tallies.items()}
    assert tallies["math"].unknown_tokens == tallies["math"].byte_tokens == 0
    assert tallies["dialogue"].unknown_tokens == sum(ids.count(0) for ids in chats["input_ids"])
    out = Console(file=io.StringIO(), width=150)
    out.print(stage_table(found.checked, title="t", rules=rules))
    assert "unknown" in out.file.getvalue() and "bytes" not in out.file.getvalue()


def test_a_task_that_the_tokenizer_cannot_write_is_refused(english):
    from eval_requests import choices

    asked = choices([("say this", [" now", " then"]), ("同一个问题：", ["水", "一条路"])])
    silent = SilentBackend(512)
    with pytest.raises(UserError, match=r"task t: \d\d\.\d% of the characters .*leave the task"):
        LmEvalModel(silent, english, chat=False).loglikelihood(asked)
    assert LmEvalModel(silent, english, chat=False, max_unknown=1.0).loglikelihood(asked)


def test_bits_per_byte_are_refused_where_the_text_is_not_given_back(english):
    from eval_requests import instances

    silent = SilentBackend(512)
    engine = LmEvalModel(silent, english, chat=False, max_unknown=1.0)
    plain = instances("loglikelihood_rolling", [("say now",)])
    assert engine.loglikelihood_rolling(plain) == [0.0]
    with pytest.raises(UserError, match="bits per byte would be too low; leave the task out"):
        engine.loglikelihood_rolling(instances("loglikelihood_rolling", [(TEXT,)]))
