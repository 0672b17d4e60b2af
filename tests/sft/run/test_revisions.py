"""Models and datasets on the hub are read at one commit, which a run records and keeps."""

import json
import os
import subprocess
import sys

import pytest
from files import ROOT
from moving_hub import MovingHub, serving
from tiny_models import make_tiny_model, make_tiny_tokenizer

from sft.config.sections import Source
from sft.data.readers import read_records
from sft.errors import UserError
from sft.model.loading import resolve_model_path
from sft.run.adapters import adapter_base
from sft.run.revisions import located, split_revision
from sft.tokenization.input_hashes import source_fingerprint

COMMIT = "0123456789abcdef0123456789abcdef01234567"

# In a process of its own: libraries read the hub's address once, when they are imported.
READ = """
import json, sys
from sft.run.adapters import adapter_base
from sft.config.sections import LoraSection, ModelSection, Source
from sft.errors import UserError
from sft.data.readers import read_records
from sft.tokenization.input_hashes import weights_fingerprint
from sft.model.loading import check_model, load_model, load_tokenizer, load_trainable
from sft.model.model_config import read_model_config
from sft.model.placement import choose_placement
from sft.model.weight_files import read_weights

said = []
for revision in json.loads(sys.argv[1]):
    try:
        path = check_model(ModelSection("org/base", revision=revision))
        config = read_model_config(path, trust_remote_code=False)
        model = read_weights(path, config=config, dtype="auto")
        size = model.get_input_embeddings().weight.sum().item()
        load_tokenizer(path, ModelSection("org/base", revision=revision))
        said.append([path, size, weights_fingerprint(path)])
    except UserError as error:
        said.append(str(error))
for name, revision in json.loads(sys.argv[2]):
    source = Source("org/rows", name=name, revision=revision)
    said.append([record.fields["response"] for record in read_records(source)])
path = said[0][0]
placement = choose_placement(ModelSection())
adapter = load_trainable(path, placement, lora=LoraSection(r=2), seed=0, trust_remote_code=False)
adapter.save_pretrained(sys.argv[3])
said.append(adapter_base(sys.argv[3]))
again = load_model(sys.argv[3], placement)
said.append(again.get_input_embeddings().weight.sum().item())
print(json.dumps(said))
"""

# Starts of a run, one for each line: whether it keeps the commits, overrides, offline.
PIN = """
import json, logging, sys
from pathlib import Path
logging.basicConfig(format="%(message)s")
from huggingface_hub import constants
from sft.config.preset import load_preset
from sft.run.revisions import pin_revisions
from sft.run.run_record import write_run_record

for line in sys.stdin:
    keep, overrides, constants.HF_HUB_OFFLINE = json.loads(line)
    preset, commits = pin_revisions(load_preset(sys.argv[1], overrides=overrides), keep=keep)
    write_run_record(Path(preset.run.dir), preset, revisions=commits)
    print(json.dumps([preset.model.revision, preset.data.sft[0].revision]), flush=True)
"""


def environment(endpoint, folder):
    env = {k: v for k, v in os.environ.items() if "PROXY" not in k.upper()}
    env |= {"PYTHONPATH": str(ROOT), "HF_HOME": str(folder / "cache"), "HF_HUB_OFFLINE": "0"}
    return env | {"HF_ENDPOINT": endpoint}


def model_at(folder, seed):
    model = make_tiny_model(seed)
    model.save_pretrained(folder)
    make_tiny_tokenizer().save_pretrained(folder)
    return model.get_input_embeddings().weight.sum().item()


def rows_at(folder, answer):
    """Two configurations, each with a row."""
    folder.mkdir()
    configs = [
        {"config_name": name, "data_files": f"{name}.jsonl"} for name in ("default", "other")
    ]
    front = json.dumps({"configs": configs})
    (folder / "README.md").write_text(f"---\n{front}\n---\n")
    for name in ("default", "other"):
        row = {"prompt": "Say it.", "response": f"{answer} {name}"}
        (folder / f"{name}.jsonl").write_text(json.dumps(row) + "\n")


@pytest.fixture
def hub(tmp_path):
    """A model and a dataset at their first commits."""
    hub = MovingHub()
    model_at(tmp_path / "base-1", 1)
    rows_at(tmp_path / "rows-1", "first")
    hub.push("org/base", tmp_path / "base-1", tag="v1")
    hub.push("org/rows", tmp_path / "rows-1", kind="dataset", tag="v1")
    return hub


def test_models_and_rows_come_from_the_revision_that_is_named(hub, tmp_path):
    first = make_tiny_model(1).get_input_embeddings().weight.sum().item()
    second = model_at(tmp_path / "base-2", 2)
    rows_at(tmp_path / "rows-2", "second")
    commit = hub.push("org/base", tmp_path / "base-2")
    hub.push("org/rows", tmp_path / "rows-2", kind="dataset")
    revisions = [None, "v1", "v9"]
    sources = [[None, None], ["other", None], [None, "v1"], ["other", "v1"]]
    given = (json.dumps(revisions), json.dumps(sources), str(tmp_path / "adapter"))
    with serving(hub) as endpoint:
        done = subprocess.run(
            [sys.executable, "-c", READ, *given],
            env=environment(endpoint, tmp_path),
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr[-4000:]
    said = json.loads(done.stdout.splitlines()[-1])
    main, tagged, unknown, *rows, base, again = said
    assert main[0] == f"org/base@{commit}" and main[1] == pytest.approx(second)
    assert tagged[0].startswith("org/base@") and tagged[1] == pytest.approx(first)
    assert main[2] != tagged[2]
    assert base == main[0] and again == pytest.approx(second)
    assert "no revision 'v9' of this model; correct it, or leave it out" in unknown
    assert rows == [["second default"], ["second other"], ["first default"], ["first other"]]


def test_a_run_keeps_the_commits_it_began_with(hub, tmp_path):
    preset = tmp_path / "preset.yaml"
    preset.write_text(
        f"run: {{dir: {tmp_path / 'run'}}}\nmodel: {{name_or_path: org/base}}\n"
        "data: {sft: [{path: org/rows, kind: math}]}\nsft_dialogue: {enabled: false}\n"
        "dpo: {enabled: false}\n"
    )
    (tmp_path / "run").mkdir()
    with serving(hub) as endpoint, (tmp_path / "log").open("w+") as log:
        starts = subprocess.Popen(
            [sys.executable, "-c", PIN, str(preset)],
            env=environment(endpoint, tmp_path),
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        assert starts.stdin is not None and starts.stdout is not None

        def pin(*overrides, keep=True, offline=False):
            starts.stdin.write(json.dumps([keep, overrides, offline]) + "\n")
            starts.stdin.flush()
            return json.loads(starts.stdout.readline())

        began = pin()
        assert all(len(commit) == 40 for commit in began) and began[0] != began[1]
        hub.push("org/base", tmp_path / "base-1")
        now = hub.push("org/base", tmp_path / "base-1")
        assert pin() == began
        # Without the hub, too, although this cache never saw the repository.
        assert pin(offline=True)[0] == began[0]
        assert pin("model.name_or_path=org/base@main") == began
        # Another revision is another wish; a rerun takes the commit that main is at now.
        assert pin("model.revision=v1")[0] == began[0]
        assert pin(keep=False) == [now, began[1]]
        starts.communicate()
        log.seek(0)
        moved = [line for line in log.read().splitlines() if "moved" in line]
    # At both starts after it moved, however the revision was given.
    assert len(moved) == 2 and len(set(moved)) == 1 and "dataset" not in moved[0]
    assert f"model org/base@main moved from commit {began[0][:12]} to {now[:12]}" in moved[0]


def test_a_revision_travels_in_the_path_of_a_model(tmp_path):
    assert split_revision(f"org/name@{COMMIT}") == ("org/name", COMMIT)
    assert located("org/name@v1") == {"pretrained_model_name_or_path": "org/name", "revision": "v1"}
    local = tmp_path / "base@v1"
    local.mkdir()
    for path in ("org/name", str(local), "/a/b/c@d"):
        assert split_revision(path) == (path, None)
        assert located(path) == {"pretrained_model_name_or_path": path}
    assert resolve_model_path("org/name", revision=COMMIT) == f"org/name@{COMMIT}"
    with pytest.raises(UserError, match=r"org/name@v1 and model\.revision=v2 name two revisions"):
        resolve_model_path("org/name@v1", revision="v2")
    make_tiny_model().save_pretrained(local)
    with pytest.raises(UserError, match=r"model\.revision=v1: .* is a local directory, which has"):
        resolve_model_path(str(local), revision="v1")


def test_an_adapter_names_the_commit_of_its_base(tmp_path):
    config = {"base_model_name_or_path": "org/base", "revision": COMMIT}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    assert adapter_base(tmp_path) == f"org/base@{COMMIT}"
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"revision": None}))
    assert adapter_base(tmp_path) == "org/base"


def test_sources_of_other_revisions_and_configurations_are_other_inputs(tmp_path):
    sources = [
        Source("org/rows"),
        Source("org/rows", revision="v1"),
        Source("org/rows", name="v1"),
        Source("org/rows", name="main", revision="v1"),
        Source("org/rows", split="test"),
    ]
    assert len({source_fingerprint(source) for source in sources}) == len(sources)
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "a", "response": "b"}\n')
    with pytest.raises(UserError, match=r"rows\.jsonl: name=main belongs to a dataset on the hub"):
        read_records(Source(str(file), name="main"))
