"""Errors for refused downloads, against a local server that answers like the Hub."""

import os
import socket
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from files import ROOT

from sft.config.sections import ModelSection, Source
from sft.data.readers import read_records
from sft.errors import UserError
from sft.model.loading import check_model

# In a separate process: libraries read the Hub's address once, when they are imported.
ASK = """
import sys
from sft.config.sections import ModelSection, Source
from sft.errors import UserError
from sft.data.readers import read_records
from sft.model.loading import check_model, load_tokenizer

for name in sys.argv[1:]:
    for ask in (
        lambda: check_model(ModelSection(name)),
        lambda: load_tokenizer(name, ModelSection(name)),
        lambda: next(read_records(Source(name))),
    ):
        try:
            ask()
        except UserError as error:
            print(str(error).count(chr(10)), error)
"""
CODES = {"gated": (403, "GatedRepo"), "gone": (404, "RepoNotFound")}


class Hub(BaseHTTPRequestHandler):
    """Refuse by the repository's owner, with the Hub's error header."""

    def do_GET(self):
        owner = next((word for word in CODES if word in self.path), "gone")
        status, code = CODES[owner]
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", "Access to this is restricted.")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


@pytest.fixture
def hub():
    """The address of a hub that has nothing for anybody."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def asked(folder, *names, endpoint):
    env = {k: v for k, v in os.environ.items() if "PROXY" not in k.upper()}
    env |= {"PYTHONPATH": str(ROOT), "HF_HOME": str(folder)}
    done = subprocess.run(
        [sys.executable, "-c", ASK, *names],
        env=env | {"HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


def test_a_hub_that_does_not_answer_is_asked_once(tmp_path):
    with socket.socket() as closed:  # bound but not listening: connections are refused
        closed.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
        done = asked(tmp_path, "some/one", endpoint=endpoint)
    told = done.stdout.splitlines()
    assert len(told) == 3
    assert all(f"{endpoint} did not answer; check the network" in line for line in told)
    assert done.stderr.count("does not answer") == 1 and "Retry" not in done.stderr


def test_gated_and_missing_names_are_told_apart_each_in_one_sentence(hub, tmp_path):
    told = asked(tmp_path, "gated/one", "gone/one", endpoint=hub).stdout.splitlines()
    assert len(told) == 6 and all(line.startswith("0 ") for line in told)
    model, tokenizer, rows, no_model, no_tokenizer, no_rows = told
    assert (tokenizer, no_tokenizer) == (model, no_model)
    assert "model.name_or_path=gated/one: its authors give it to those who ask, and" in model
    assert f"ask on {hub}/gated/one, then run `hf auth login` here" in model
    assert f"ask on {hub}/datasets/gated/one, then" in rows
    assert "the hub has no such model or keeps it private; correct the name" in no_model
    assert "gone/one: there is no such local path, and the hub has no such dataset" in no_rows


def test_off_the_hub_the_way_to_fetch_is_named():
    with pytest.raises(UserError, match="HF_HUB_OFFLINE keeps this command off the hub") as told:
        check_model(ModelSection("some-org/some-one"))
    assert "`hf download some-org/some-one` where there is a network" in str(told.value)
    with pytest.raises(UserError, match=r"`hf download some-org/one --repo-type dataset` where"):
        next(read_records(Source("some-org/one")))
