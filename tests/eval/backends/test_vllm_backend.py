"""vLLM behind the engine: what it must share with transformers, computed by a stand-in for it.

TRUING_VLLM_PYTHON, a Python that has vLLM, puts the real one in the stand-in's place; its draws are
its own, so what is sampled is then not compared. TRUING_VLLM_SOURCE, a folder that holds vLLM's
source, serves where only the signatures are to be compared.
"""

import ast
import dataclasses
import importlib.util
import inspect
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import vllm_stand_in
from eval_requests import QUESTIONS, choices, generation_requests, instances
from files import ROOT
from looping_model import PROMPTS
from tiny_models import make_tiny_model, make_tiny_tokenizer
from tiny_world import build_world

from eval.backends.base import Question
from eval.backends.loading import backend_inputs, check_backend, loaded
from eval.backends.transformers_backend import TransformersBackend
from eval.backends.vllm_backend import CHILD, check_vllm, environment, find_vllm
from eval.generation.generate import GenerationSettings
from eval.measures import repetition
from eval.metrics import loop_detection
from eval.tasks.lm_eval_model import Engine
from recipes import base_vs_chat
from sft.chat_template.encoding import encode_prompt, stop_ids
from sft.chat_template.template import ensure_template
from sft.config.preset import load_preset
from sft.config.sections import EvalSection, LoraSection, ModelSection, Preset
from sft.context import RunContext
from sft.errors import UserError
from sft.model.loading import load_model, load_trainable, save_model
from sft.model.placement import choose_placement
from sft.system.atomic_files import read_json, read_jsonl

REAL = os.environ.get("TRUING_VLLM_PYTHON")
SECTION = EvalSection(backend="vllm", vllm_python=REAL)
BY_VLLM = ["--vllm", sys.executable]  # the stand-in
draws_as_ours = pytest.mark.skipif(bool(REAL), reason="vLLM draws its own numbers")


def on_path(patch, folder):
    """Let a Python that is started from here find the packages in `folder`."""
    patch.setenv("PYTHONPATH", os.pathsep.join([str(folder), str(ROOT)]))
    find_vllm.cache_clear()


def context_of(folder, tokenizer, **changes):
    preset = Preset(model=ModelSection(str(folder), dtype="float32"), **changes)
    placement = choose_placement(preset.model)
    return RunContext.of(preset, folder=folder, tokenizer=tokenizer, placement=placement)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """One model in both backends, and the tokenizer: (vLLM, transformers, tokenizer)."""
    folder = tmp_path_factory.mktemp("served")
    tokenizer = make_tiny_tokenizer()
    ensure_template(tokenizer)
    # vLLM's kernels want heads of 32 at least.
    model = make_tiny_model(
        3,
        initializer_range=0.09,
        hidden_size=64,
        num_attention_heads=2,
        num_hidden_layers=1,
        max_position_embeddings=256,
    )
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    with pytest.MonkeyPatch.context() as patch:
        if not REAL:
            on_path(patch, vllm_stand_in.install(folder / "packages"))
        context = context_of(folder, tokenizer)
        path = str(folder / "model")
        with (
            loaded(path, context, SECTION) as theirs,
            loaded(path, context, EvalSection()) as ours,
        ):
            yield theirs, ours, tokenizer
    find_vllm.cache_clear()


def engines(served, **options):
    """An engine over each; that over transformers with vLLM's window, which is two tokens less."""
    theirs, ours, tokenizer = served
    pair = [Engine(backend, tokenizer, chat=False, **options) for backend in (theirs, ours)]
    assert (pair[0].window, pair[1].window) == (254, 256)
    pair[1].window = 254
    return pair


def assert_same_scores(theirs, ours):
    assert len(theirs) == len(ours)
    for (total, greedy), (our_total, our_greedy) in zip(theirs, ours, strict=True):
        assert total == pytest.approx(our_total, abs=1e-3 if REAL else 1e-4)
        assert greedy == our_greedy


def test_choices_score_as_with_transformers_up_to_a_full_window(served):
    questions = [*QUESTIONS * 3, ("too long " * 60, [" a", " bcd"])]
    theirs, ours = (engine.loglikelihood(choices(questions)) for engine in engines(served))
    assert_same_scores(theirs, ours)


def test_greedy_continuations_are_known_as_such(served):
    theirs, ours, _ = served
    (answer,) = ours.generate([[70, 80, 90]], GenerationSettings(max_new_tokens=12, stop_ids=[]))
    for wrong in (12, 5, 0):
        tail = list(answer.token_ids)
        if wrong < 12:
            tail[wrong] = (tail[wrong] + 1) % 260
        asked = [Question((70, 80, 90), tuple(tail))]
        assert theirs.score(asked)[0].agreed == ours.score(asked)[0].agreed == wrong


def test_texts_score_as_with_transformers_over_several_windows(served):
    texts = ["A short one.", "Ein längerer Text, 反复。 " * 20]
    requests = instances("loglikelihood_rolling", [(text,) for text in texts])
    theirs, ours = (engine.loglikelihood_rolling(requests) for engine in engines(served))
    assert theirs == pytest.approx(ours, abs=1e-2)


@pytest.mark.parametrize("sampled", [False, pytest.param(True, marks=draws_as_ours)])
def test_generation_of_tasks_reads_as_with_transformers(served, sampled):
    heat = {"do_sample": True, "temperature": 0.8, "top_p": 0.9} if sampled else {}
    settings = {"until": [], "max_gen_toks": 30} | heat
    free = engines(served)[1].generate_until(generation_requests(settings))
    settings["until"] = [free[0][3:5], free[1][10:12], "never written"]
    pair = engines(served)
    theirs, ours = (engine.generate_until(generation_requests(settings)) for engine in pair)
    assert theirs == ours != free
    assert pair[0].finish_reasons == pair[1].finish_reasons
    assert "stop_string" in pair[0].finish_reasons.values()


PLACES = [[10 + i, 100 + 3 * i, 60 + i * i % 90][: 1 + i % 3] for i in range(12)]


def both(served, prompts, **options):
    settings = GenerationSettings(**{"stop_ids": [], **options})
    theirs, ours, _ = served
    return theirs.generate(prompts, settings), ours.generate(prompts, settings)


def test_rows_end_at_their_own_caps_and_stop_ids(served):
    caps = [1 + 5 * i for i in range(12)]
    free, ours = both(served, PLACES, max_new_tokens=caps)
    assert free == ours
    assert [len(one.token_ids) for one in free] == caps
    stops = [free[6].token_ids[4], free[9].token_ids[20]]
    theirs, ours = both(served, PLACES, max_new_tokens=caps, stop_ids=stops)
    assert theirs == ours
    assert {one.finish_reason for one in theirs} == {"stop_id", "cap"}
    assert all(one.token_ids[-1] in stops for one in theirs if one.finish_reason == "stop_id")


SAMPLED = {"temperature": 1.1, "top_p": 0.95, "stop_ids": []}


def test_each_row_draws_by_its_own_seed(served):
    theirs, *_ = served
    seeds = [4, 7, 4, 8, 7]
    rows = theirs.generate(
        [PLACES[0]] * 5, GenerationSettings(max_new_tokens=20, seeds=seeds, **SAMPLED)
    )
    answers = dict(zip(seeds, [row.token_ids for row in rows], strict=True))
    assert [row.token_ids for row in rows] == [answers[seed] for seed in seeds]
    assert len({tuple(answer) for answer in answers.values()}) == 3


@draws_as_ours
def test_sampled_rows_are_those_of_transformers(served):
    theirs, ours = both(served, PLACES, max_new_tokens=20, seeds=[*range(12)], **SAMPLED)
    assert theirs == ours


def test_loops_are_left_at_the_same_token(served):
    def loops(tokens):
        return loop_detection.find_loop(tokens) is not None

    theirs, ours = both(served, PLACES, max_new_tokens=160, stop_when=loops)
    assert theirs == ours
    assert "loop" in {one.finish_reason for one in theirs}
    assert all(len(one.token_ids) < 160 for one in theirs if one.finish_reason == "loop")


def test_a_stop_string_that_only_vllm_sees_ends_nothing(served):
    """It decodes behind the prompt: a character that begins there is in its text, not in ours."""
    _, ours, tokenizer = served
    letters = {chr(code): chr(code).encode() for code in range(0xC0, 0x800)}
    (byte,) = {len(tokenizer(chr(65 + i))["input_ids"]) for i in range(26)}
    assert byte == 1, "a token a byte"
    first = {pair[0]: tokenizer(letter)["input_ids"] for letter, pair in letters.items()}
    prompts = [[65 + i, ids[0]] for i in range(40) for ids in first.values()]
    written = ours.generate(prompts, GenerationSettings(max_new_tokens=1, stop_ids=[]))
    after = {tuple(tokenizer(letter)["input_ids"]): letter for letter in letters}
    split = [
        (prompt, after[prompt[1], one.token_ids[0]])
        for prompt, one in zip(prompts, written, strict=True)
        if (prompt[1], one.token_ids[0]) in after
    ]
    prompt, letter = split[0]
    theirs, ours = both(served, [prompt], max_new_tokens=20, stop_strings=[letter])
    assert theirs == ours
    assert len(theirs[0].token_ids) > 1


def test_repetition_is_measured_as_with_transformers(served):
    theirs, ours, tokenizer = served
    rows = [repetition.measure(one, tokenizer, PROMPTS, cap=60) for one in (theirs, ours)]
    assert rows[0] == rows[1]
    assert any(row["repeats"] for row in rows[0])


@draws_as_ours
def test_sampled_repetition_is_measured_as_with_transformers(served):
    theirs, ours, tokenizer = served
    options = {"cap": 40, "temperature": 0.6, "seed": 1}
    rows = [
        repetition.measure_sampled(one, tokenizer, PROMPTS, **options) for one in (theirs, ours)
    ]
    assert rows[0] == rows[1]


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    if not REAL:
        on_path(monkeypatch, vllm_stand_in.install(tmp_path / "packages"))
    yield
    find_vllm.cache_clear()


def test_an_adapter_is_merged_and_leaves_nothing_behind(stand_in, tmp_path, tiny_tokenizer):
    ensure_template(tiny_tokenizer)
    base = make_tiny_model(hidden_size=64, num_attention_heads=2)
    base.save_pretrained(tmp_path / "base")
    tiny_tokenizer.save_pretrained(tmp_path / "base")
    context = context_of(tmp_path, tiny_tokenizer)
    adapter = load_trainable(
        str(tmp_path / "base"),
        context.placement,
        lora=LoraSection(r=4),
        seed=0,
        trust_remote_code=False,
    )
    with torch.no_grad():
        for name, weight in adapter.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.1)
    save_model(adapter, tiny_tokenizer, tmp_path / "adapter")
    path, asked = str(tmp_path / "adapter"), [Question((70, 80), (90, 100, 110))]
    known = TransformersBackend(load_model(path, context.placement), tiny_tokenizer)
    bare = load_model(str(tmp_path / "base"), context.placement)
    before = set(tmp_path.iterdir())
    with loaded(path, context, SECTION) as backend:
        (found,) = backend.score(asked)
        assert backend.eos_ids == known.eos_ids
    assert found.log_prob == pytest.approx(known.score(asked)[0].log_prob, abs=1e-3)
    (unchanged,) = TransformersBackend(bare, tiny_tokenizer).score(asked)
    assert abs(found.log_prob - unchanged.log_prob) > 0.01
    assert set(tmp_path.iterdir()) == before


def assert_same_rows(one, other, *, files):
    names = {path.relative_to(one) for path in one.rglob("*.jsonl")}
    assert len(names) == files
    for name in names:
        for left, right in zip(read_jsonl(one / name), read_jsonl(other / name), strict=True):
            logs = [row.pop("log_probs", []) for row in (left, right)]
            assert logs[1] == pytest.approx(logs[0], abs=1e-4)
            assert left == right


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """base_vs_chat by transformers and by the stand-in: the folder that holds ours/ and theirs/,
    and what each start was told."""
    folder, tokenizer = tmp_path_factory.mktemp("compared"), make_tiny_tokenizer()
    build_world(folder, tokenizer)
    make_tiny_model(1).save_pretrained(folder / "chat")
    tokenizer.save_pretrained(folder / "chat")
    (folder / "safety.jsonl").write_text(
        json.dumps({"id": "a", "prompt": "say it", "reference": {"refuse": True}}) + "\n"
    )
    common = ["--base", str(folder / "base"), "--preset", str(folder / "preset.yaml")]
    common += ["--safety", str(folder / "safety.jsonl")]
    both = [*common, "--chat", str(folder / "chat")]
    with pytest.MonkeyPatch.context() as patch:
        on_path(patch, vllm_stand_in.install(folder / "packages"))
        assert base_vs_chat.main([*both, "--to", str(folder / "ours")]) == 0
        assert base_vs_chat.main([*both, *BY_VLLM, "--to", str(folder / "theirs")]) == 0
        yield folder, common
    find_vllm.cache_clear()


@draws_as_ours
def test_base_vs_chat_has_the_same_rows_with_either(compared):
    folder, _ = compared
    runs = [folder / "ours", folder / "theirs"]
    assert_same_rows(*(run / "eval" for run in runs), files=6)
    done = [read_json(run / "eval" / "chat" / "done.json")["inputs"] for run in runs]
    assert "backend" not in done[0]
    assert done[1]["backend"] == "vllm 0.33.0 torch.float32"
    kept = runs[1] / "eval" / "chat" / "kept"
    assert {read_json(p)["inputs"]["backend"] for p in kept.rglob("*.json")} == {done[1]["backend"]}


@draws_as_ours
@pytest.mark.parametrize(
    "sides",
    [
        ["--samples", "a=ours", "--samples", "b=theirs"],
        ["--base", "base", "--samples", "b=theirs"],
        ["--base", "base", "--samples", "a=ours", *BY_VLLM],
    ],
    ids=["both measured before", "here by transformers", "here by vllm"],
)
def test_what_one_backend_measured_is_not_compared_with_the_other_s(
    compared, sides, tmp_path, monkeypatch, capsys
):
    folder, _ = compared
    monkeypatch.chdir(folder)
    options = ["--preset", "preset.yaml", "--to", str(tmp_path)]
    assert base_vs_chat.main([*sides, *options]) == 2
    words = capsys.readouterr().err
    assert "error: measured by different backends" in words and "by transformers" in words
    assert not (tmp_path / "eval" / "base").exists()


@draws_as_ours
def test_two_processes_share_the_questions_with_a_vllm_each(compared, tmp_path):
    folder, common = compared
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += [ROOT / "recipes/base_vs_chat.py", *common, *BY_VLLM, "--to", tmp_path]
    ended = subprocess.run(
        [*command, "--samples", f"chat={folder / 'theirs'}"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert "measured by: vLLM 0.33.0, cpu, float32" in ended.stderr
    assert_same_rows(folder / "theirs" / "eval" / "base", tmp_path / "eval" / "base", files=3)
    deltas = [read_json(run / "results.json")["deltas"] for run in (folder / "theirs", tmp_path)]
    assert deltas[0] == deltas[1]
    assert not (tmp_path / ".vllm").exists()


def test_a_vllm_that_is_not_there_is_said_before_anything_loads(
    tmp_path, tiny_tokenizer, monkeypatch
):
    on_path(monkeypatch, ROOT)
    context = context_of(tmp_path, tiny_tokenizer)
    for python, words in {
        "/nowhere/python": r"eval.vllm_python=/nowhere/python cannot be started \(No such file",
        sys.executable: r"cannot import vLLM \(ModuleNotFoundError: No module named 'vllm'\)",
    }.items():
        if python == sys.executable and importlib.util.find_spec("vllm"):
            continue
        section = EvalSection(backend="vllm", vllm_python=python)
        with pytest.raises(UserError, match=words) as error:
            check_backend(section, context.placement)
        assert "~/vllm/bin/pip install vllm" in str(error.value)
    check_backend(EvalSection(), context.placement)
    assert backend_inputs(EvalSection(), context) == {}


def fake_package(folder, source, *, device="''"):
    """A `vllm` of a few lines, where nothing is computed."""
    package = folder / "vllm"
    package.mkdir()
    (package / "__init__.py").write_text(source)
    (package / "platforms.py").write_text(f"class current_platform:\n    device_type = {device}\n")
    return folder


@pytest.mark.parametrize("device", ["cuda", ""])
def test_a_vllm_of_another_device_is_refused_by_name(tmp_path, monkeypatch, device):
    on_path(
        monkeypatch, fake_package(tmp_path, "__version__, LLM = '9', None", device=repr(device))
    )
    named = device or "no device of this machine"
    with pytest.raises(UserError, match=f"computes on {named}, and the run is on cpu"):
        check_vllm(None, torch.device("cpu"))
    with pytest.raises(UserError, match="vLLM does not compute on mps"):
        check_vllm(None, torch.device("mps"))
    find_vllm.cache_clear()


def test_vllm_is_told_nothing_of_ranks_and_sends_nothing_home(tmp_path, monkeypatch):
    names = ["VLLM_NO_USAGE_STATS", "DO_NOT_TRACK", "VLLM_ENABLE_V1_MULTIPROCESSING", "RANK"]
    names += ["TORCHELASTIC_USE_AGENT_STORE", "ACCELERATE_USE_FSDP"]
    source = (
        f"import os\nLLM = None\n__version__ = ' '.join(os.environ.get(n, '-') for n in {names})"
    )
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("DO_NOT_TRACK", "0")
    on_path(monkeypatch, fake_package(tmp_path, source))
    assert find_vllm(None).version == "1 1 0 - - -"
    find_vllm.cache_clear()


@pytest.mark.parametrize("visible, seen", [(None, ["0", "1", None]), ("5,7", ["5", "7", "5,7"])])
def test_the_vllm_of_a_process_sees_the_gpu_of_that_process(monkeypatch, visible, seen):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    devices = [torch.device(name) for name in ("cuda:0", "cuda:1", "cuda")]
    assert [environment(device).get("CUDA_VISIBLE_DEVICES") for device in devices] == seen


SLEEPER = """
import time
TokensPrompt = SamplingParams = dict
class LLM:
    class model_config:
        max_model_len = 8
    def __init__(self, **kwargs): print("words of vLLM", flush=True)
    def generate(self, *args, **kwargs): time.sleep(600)
"""


def test_the_process_ends_with_its_orders_whatever_it_is_at(tmp_path, monkeypatch):
    on_path(monkeypatch, fake_package(tmp_path, SLEEPER))
    child = subprocess.Popen(
        [sys.executable, str(CHILD)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    child.stdin.write(json.dumps({"load": {}}) + "\n")
    child.stdin.flush()
    assert child.stdout.readline() == "8\n", "vLLM's words do not go between the replies"
    child.stdin.write(json.dumps({"write": [{"ids": [1], "params": {}}]}) + "\n")
    child.stdin.flush()
    time.sleep(0.2)
    _, words = child.communicate(timeout=60)  # closes its standard input, as a killed run does
    assert child.returncode == 0 and words == "words of vLLM\n"


def test_a_model_that_vllm_does_not_take_is_said(tmp_path, monkeypatch, tiny_tokenizer, capfd):
    source = (
        "__version__ = '9'\nclass LLM:\n    def __init__(self, **kwargs): raise ValueError('no')"
    )
    on_path(monkeypatch, fake_package(tmp_path, source, device="'cpu'"))
    make_tiny_model().save_pretrained(tmp_path / "model")
    context = context_of(tmp_path, tiny_tokenizer)
    words = r"vLLM 9 did not load .*model \(exit code 1, its reason is above\)"
    with (
        pytest.raises(UserError, match=words),
        loaded(str(tmp_path / "model"), context, EvalSection(backend="vllm")),
    ):
        pass
    assert "ValueError: no" in capfd.readouterr().err
    find_vllm.cache_clear()


def test_settings_that_the_backend_would_not_follow_are_refused(tmp_path):
    path = tmp_path / "preset.yaml"
    path.write_text("model: {name_or_path: m}\ndata: {sft: [{path: a}]}\ndpo: {enabled: false}\n")
    with pytest.raises(UserError, match=r"eval.vllm_python=/p has no effect on eval.backend="):
        load_preset(path, overrides=["eval.vllm_python=/p"])
    with pytest.raises(UserError, match=r"vLLM loads a whole model in each process"):
        load_preset(path, overrides=["eval.backend=vllm", "eval.in_parts=true"])
    with pytest.raises(UserError, match=r"eval.backend='tgi' is not one of transformers, vllm"):
        load_preset(path, overrides=["eval.backend=tgi"])
    placement = replace(choose_placement(ModelSection()), load_in_4bit=True)
    with pytest.raises(UserError, match=r"eval.backend=vllm would measure whole weights, not the"):
        check_backend(EvalSection(backend="vllm"), placement)


# --- the stand-in against vLLM itself --------------------------------------------------------


def vllm_source():
    """The folder of vLLM's source, found without importing it."""
    given = os.environ.get("TRUING_VLLM_SOURCE")
    spec = importlib.util.find_spec("vllm")
    if given is None and (spec is None or not spec.submodule_search_locations):
        pytest.skip("no vLLM here to compare with; set TRUING_VLLM_SOURCE to its source")
    return Path(given or spec.submodule_search_locations[0])


def class_of(path, name):
    (found,) = (
        node
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ClassDef) and node.name == name
    )
    return found


def fields_of(node):
    return {
        item.target.id
        for item in node.body
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
    }


def arguments_of(node, method):
    (found,) = (
        item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == method
    )
    return {a.arg for a in (*found.args.args, *found.args.kwonlyargs)}


def test_the_stand_in_has_no_name_that_vllm_lacks():
    source = vllm_source()
    engine = class_of(source / "engine" / "arg_utils.py", "EngineArgs")
    llm = class_of(source / "entrypoints" / "llm.py", "LLM")
    known = {
        "LLM.__init__": arguments_of(llm, "__init__") | fields_of(engine),
        "LLM.generate": arguments_of(llm, "generate"),
        "SamplingParams": fields_of(class_of(source / "sampling_params.py", "SamplingParams")),
        "Logprob": fields_of(class_of(source / "logprobs.py", "Logprob")),
        "CompletionOutput": fields_of(class_of(source / "outputs.py", "CompletionOutput")),
        "RequestOutput": arguments_of(class_of(source / "outputs.py", "RequestOutput"), "__init__"),
        "TokensPrompt": fields_of(class_of(source / "inputs" / "llm.py", "TokensPrompt")),
    }

    def named(cls):
        return {field.name for field in dataclasses.fields(cls)}

    touched = {
        "LLM.__init__": set(inspect.signature(vllm_stand_in.LLM.__init__).parameters),
        "LLM.generate": set(inspect.signature(vllm_stand_in.LLM.generate).parameters),
        "TokensPrompt": set(vllm_stand_in.TokensPrompt.__annotations__),
    } | {
        name: named(getattr(vllm_stand_in, name))
        for name in ("SamplingParams", "Logprob", "CompletionOutput", "RequestOutput")
    }
    lacking = {name: touched[name] - names for name, names in known.items()}
    assert not any(lacking.values()), lacking


def test_vllm_still_has_what_is_relied_on():
    source = vllm_source()
    exported = (source / "__init__.py").read_text("utf-8")
    for name in ("LLM", "SamplingParams", "TokensPrompt", "__version__"):
        assert f'"{name}"' in exported
    engine = (source / "v1" / "engine" / "__init__.py").read_text("utf-8")
    assert '"stop"' in engine and '"length"' in engine
    envs = (source / "envs.py").read_text("utf-8")
    for name in ("VLLM_NO_USAGE_STATS", "VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_LOGGING_LEVEL"):
        assert f'"{name}"' in envs
    assert "DO_NOT_TRACK" in envs
    platform = (source / "platforms" / "interface.py").read_text("utf-8")
    assert "device_type: str" in platform


@pytest.mark.gpu
def test_vllm_on_a_gpu_scores_and_writes_as_transformers(served):
    """The tests above with TRUING_VLLM_PYTHON are the rest of it."""
    if not (torch.cuda.is_available() and REAL):
        pytest.skip("needs a CUDA device and TRUING_VLLM_PYTHON")
    theirs, ours, tokenizer = served
    prompts = [encode_prompt(tokenizer, prompt["messages"]) for prompt in PROMPTS]
    settings = GenerationSettings(max_new_tokens=60, stop_ids=stop_ids(tokenizer))
    written = [one.generate(prompts, settings) for one in (theirs, ours)]
    asked = [Question(tuple(one.prompt_ids), tuple(one.token_ids)) for one in written[1]]
    for their, our in zip(theirs.score(asked), ours.score(asked), strict=True):
        assert their.log_prob == pytest.approx(our.log_prob, abs=0.01)
    same = [a.token_ids == b.token_ids for a, b in zip(*written, strict=True)]
    assert sum(same) >= len(same) - 1
