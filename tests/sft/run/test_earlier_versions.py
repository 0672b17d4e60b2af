"""Runs of earlier versions continue where nothing changed, and are refused otherwise."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from tiny_models import make_tiny_model

from sft.config.sections import ModelSection, Preset, RunSection
from sft.errors import UserError
from sft.run.directory import open_run
from sft.run.earlier_versions import HASH_RULES
from sft.run.fingerprint import fingerprint
from sft.run.run_record import write_run_record
from sft.run.stage_cache import Stage
from sft.system.atomic_files import read_json, write_json
from sft.system.run_marker import NAME, read_marker
from sft.tokenization.input_hashes import READ_BEFORE, earlier_inputs, weights_fingerprint


@pytest.fixture
def run(tmp_path):
    """A run of a trained stage as versions before `.run.jsonl` and `hash_rules` left it."""
    make_tiny_model().save_pretrained(tmp_path / "base")
    base = ModelSection(str(tmp_path / "base"))
    preset = Preset(run=RunSection(str(tmp_path / "run")), model=base)
    with start(preset) as folder:
        write_run_record(folder, preset, inputs=earlier_inputs(str(tmp_path / "base")))
        stage = Stage(folder / "1-sft-all", {})
        stage.begin()
        stage.finish(outputs=[], facts={})
    for name in ("report.html", "1-sft-all/loops/0/generations.jsonl", "data/checks.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    (folder / "eval/base/kept/protocol").mkdir(parents=True)
    (folder / "eval/base/kept/protocol/sums.json").write_text("{}")
    (folder / NAME).unlink()
    record = read_json(folder / "run.json")
    for key in ("hash_rules", "sha256"):
        del record[key]
    write_json(folder / "run.json", record)
    return preset


def start(preset, **options):
    base = preset.model.name_or_path
    inputs = {f"the weights of {base}": weights_fingerprint(base)}
    return open_run(preset, inputs=inputs, earlier=earlier_inputs(base), **options)


def test_weights_that_did_not_change_are_known_by_the_hash_of_the_earlier_version(run, tmp_path):
    base = str(tmp_path / "base")
    assert weights_fingerprint(base) != weights_fingerprint(base, patterns=READ_BEFORE)
    with start(run) as folder:
        write_run_record(folder, run, inputs={f"the weights of {base}": weights_fingerprint(base)})
    assert read_json(folder / "run.json")["hash_rules"] == HASH_RULES
    with start(run):
        pass
    config = tmp_path / "base" / "generation_config.json"  # which the earlier hash did not cover
    config.write_text(json.dumps(json.loads(config.read_text()) | {"max_length": 7}))
    with pytest.raises(UserError, match="changed since the run began: the weights"), start(run):
        pass


def test_weights_that_changed_since_an_earlier_version_are_refused(run, tmp_path):
    config = tmp_path / "base" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"rms_norm_eps": 1e-5}))
    with pytest.raises(UserError, match="changed since the run began: the weights"), start(run):
        pass


def test_a_run_of_a_later_version_is_refused_as_such(run):
    record = read_json(_file(run, "run.json"))
    write_json(_file(run, "run.json"), record | {"hash_rules": HASH_RULES + 1})
    with pytest.raises(UserError, match="last used by a later version of truing"), start(run):
        pass


@pytest.mark.parametrize(("section", "key"), [("lora", "target_parameters"), ("run", "date")])
def test_trained_stages_are_not_done_again_for_a_key_that_came_later(run, section, key):
    run = replace(run, run=replace(run.run, date="2026-11-30"))
    recorded = yaml.safe_load(_file(run, "preset.yaml").read_text())
    del recorded[section][key]
    _file(run, "preset.yaml").write_text(yaml.safe_dump(recorded))
    before = sorted(_file(run, ".").rglob("*"))
    record = read_json(_file(run, "run.json"))
    write_json(_file(run, "run.json"), record | {"preset_sha256": fingerprint(recorded)})
    words = rf"begun by an earlier version of truing.* did not record {section}.{key}: "
    with pytest.raises(UserError, match=words), start(run):
        pass
    assert sorted(_file(run, ".").rglob("*")) == before
    (_file(run, "1-sft-all") / "done.json").unlink()  # nothing is trained: nothing is lost
    with start(run):
        pass


def test_fresh_finds_the_files_of_a_run_without_a_marker(run):
    mine = _file(run, "1-sft-all") / "thesis.txt"
    mine.write_text("mine")
    words = r"not from this run \(1-sft-all/thesis.txt\), which has lost its list of files"
    with pytest.raises(UserError, match=words), start(run, fresh=True):
        pass
    assert not _file(run, NAME).exists()
    mine.unlink()
    with start(run, fresh=True) as folder:
        marker = read_marker(folder)
        assert marker is not None and sorted(marker.written) == ["preset.yaml"]
        assert {p.name for p in folder.iterdir()} == {NAME, ".lock", "preset.yaml"}


def _file(run, name):
    return Path(run.run.dir) / name
