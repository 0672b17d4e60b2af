"""The vLLM backend, in a separate process and usually a separate Python.

vLLM pins other versions of torch and transformers, so it has its own environment
(`eval.vllm_python`), and a process that exits frees all GPU memory for the next stage of training.
The process takes and returns token ids. `eval.generation.stopping.StopRule` decides here when an
answer ends: vLLM also stops at stop strings within thinking, and such a row is continued.

Compared with transformers on vLLM 0.32.0's CPU build in float32; not yet run on a GPU.
"""

import functools
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from eval.backends.base import Backend, Scored, ScoreRequest
from eval.generation.generate import Generation, GenerationSettings
from eval.generation.stopping import StopRule
from sft.errors import UserError
from sft.run.revisions import split_revision

log = logging.getLogger(__name__)

CHILD = Path(__file__).with_name("vllm_worker.py")
# Rows of one request: enough to fill vLLM's scheduler, and few enough that progress is visible and
# a line of JSON has a few megabytes.
ROWS = 2048
# Of the free GPU memory; the rest is for memory that vLLM does not count, mostly prompt logits.
MEMORY_SHARE = 0.9
PATIENCE = 30  # seconds for the process to exit after its input ends
# The launcher's variables, which vLLM must not see: torch.distributed.rendezvous would look for
# vLLM's only rank in the launcher's store and wait forever.
_LAUNCHER = (
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "ROLE_NAME", "MASTER_ADDR", "MASTER_PORT"),
    *("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE"),
)
_LAUNCHERS = ("TORCHELASTIC_", "ACCELERATE_")
_PROBE = """
import sys
sys.path = [place for place in sys.path if place]  # not the current directory, which -c puts first
import json, vllm
from vllm import LLM  # imports most of vLLM and its dependencies
from vllm.platforms import current_platform
print(json.dumps([vllm.__version__, current_platform.device_type]))
"""


@dataclass(frozen=True)
class Vllm:
    """An installed vLLM: its Python, version and device."""

    python: str
    version: str
    device: str  # cuda, cpu, ...; empty if it finds none


@functools.cache
def find_vllm(python: str | None) -> Vllm:
    """Return the vLLM of a Python, by default of this one.

    Raises:
        UserError: there is no such Python, or it has no vLLM that can be imported.
    """
    path = str(Path(python).expanduser()) if python else sys.executable
    remedy = (
        "install it in a separate environment (python3 -m venv ~/vllm && ~/vllm/bin/pip install "
        "vllm) and write eval.vllm_python=~/vllm/bin/python on the command line, or set "
        "eval.backend=transformers"
    )
    command = [path, "-c", _PROBE]
    try:
        found = subprocess.run(
            command,
            env=environment(),
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
    except OSError as error:
        raise UserError(
            f"eval.vllm_python={path} cannot be started ({error.strerror}); {remedy}"
        ) from None
    if found.returncode:
        reason = (found.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UserError(
            f"eval.backend=vllm: {path} cannot import vLLM ({reason}); {remedy}"
        ) from None
    try:
        version, device = json.loads(found.stdout.strip().splitlines()[-1])
    except (IndexError, TypeError, ValueError):  # another program, such as echo
        raise UserError(f"eval.vllm_python={path} is no Python; {remedy}") from None
    return Vllm(path, version, device or "")


def check_vllm(python: str | None, device: torch.device) -> Vllm:
    """Return the vLLM of a Python, checked to compute on the run's device.

    Raises:
        UserError: as `find_vllm`, or vLLM does not support the device.
    """
    if device.type == "mps":
        raise UserError(
            "eval.backend=vllm: vLLM does not compute on mps; set eval.backend=transformers"
        )
    found = find_vllm(python)
    if found.device != device.type:
        raise UserError(
            f"eval.backend=vllm: vLLM {found.version} of {found.python} computes on "
            f"{found.device or 'no device of this machine'}, and the run is on {device.type}; set "
            "eval.backend=transformers"
        )
    return found


@dataclass(frozen=True)
class VllmModel:
    """A full model that vLLM can load.

    Attributes:
        path: a folder or a repository of the Hub, with or without a revision.
        tokenizer_folder: the tokenizer on disk, with which vLLM finds stop strings.
        window: of the model; vLLM's limit may be smaller.
        eos_ids: those of the model's generation config.
    """

    path: str
    tokenizer_folder: Path
    dtype: torch.dtype
    window: int | None
    eos_ids: tuple[int, ...]
    seed: int
    trust_remote_code: bool

    def engine_args(self) -> dict[str, Any]:
        """Return the arguments of `vllm.LLM`."""
        name, revision = split_revision(self.path)
        return {
            "model": name,
            **({"revision": revision} if revision else {}),
            "tokenizer": str(self.tokenizer_folder),
            "dtype": str(self.dtype).removeprefix("torch."),
            "load_format": "safetensors",  # pickled weights are not loaded
            "trust_remote_code": self.trust_remote_code,
            "seed": self.seed,
            "max_model_len": -1,  # the model's, or as much as fits in memory
            "generation_config": "vllm",  # not the model's: each row has its settings
            "logprobs_mode": "raw_logprobs",
            "enable_prefix_caching": True,
        }


@contextmanager
def vllm_backend(
    model: VllmModel, *, vllm: Vllm, tokenizer: PreTrainedTokenizerBase, device: torch.device
) -> Iterator[Backend]:
    """Load a model in a vLLM process, which ends with the context and frees all its memory.

    Raises:
        UserError: vLLM does not load the model.
    """
    load = model.engine_args()
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        load["gpu_memory_utilization"] = round(MEMORY_SHARE * free / total, 3)
    process = _Process(vllm, device)
    try:
        limit = process.request({"load": load})
        if limit is None:
            raise UserError(
                f"vLLM {vllm.version} did not load {model.path} (exit code {process.end()}, its "
                "reason is above); set eval.backend=transformers"
            )
        # A scored row is shorter than vLLM's limit: vLLM generates a token after it.
        limit -= 2
        window = model.window
        if window is not None and limit < window - 2:
            log.warning("vLLM: window %d instead of %d tokens, to fit in memory", limit, window)
        log.info("measured by: vLLM %s, %s, %s", vllm.version, device.type, load["dtype"])
        window = limit if window is None else min(window, limit)
        yield VllmBackend(process, tokenizer, window, model.eos_ids)
    finally:
        process.end()


class _Process:
    """The vLLM process: one line of JSON for a request, one for its reply."""

    def __init__(self, vllm: Vllm, device: torch.device) -> None:
        self.popen = subprocess.Popen(
            [vllm.python, str(CHILD)],
            env=environment(device),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            # In a new session, Ctrl-C reaches only this process, which then ends the child.
            start_new_session=True,
        )

    def request(self, content: Mapping[str, object]) -> Any:
        """Return the reply, or None if the process has exited."""
        assert self.popen.stdin is not None and self.popen.stdout is not None
        with suppress(BrokenPipeError):
            self.popen.stdin.write(json.dumps(content) + "\n")
            self.popen.stdin.flush()
        line = self.popen.stdout.readline()
        return json.loads(line) if line else None

    def end(self) -> int:
        """End the process with all that it started, and return its exit code."""
        assert self.popen.stdin is not None and self.popen.stdout is not None
        with suppress(BrokenPipeError):
            self.popen.stdin.close()
        try:
            self.popen.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            log.warning("vLLM did not end within %d seconds, killed", PATIENCE)
        with suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.stdout.close()
        return self.popen.wait()


@dataclass
class _Row:
    """An answer in progress."""

    prompt: list[int]
    cap: int
    seed: int | None
    tokens: list[int] = field(default_factory=list)

    def request(self, common: dict[str, Any]) -> dict[str, Any]:
        """Return the request that continues this row with SamplingParams `common`."""
        params = common | {"max_tokens": self.cap - len(self.tokens)}
        if self.seed is not None:
            # A continued row must not repeat the draws that it had.
            params["seed"] = self.seed + len(self.tokens)
        return {"ids": self.prompt + self.tokens, "params": params}


class VllmBackend(Backend):
    """A model in vLLM.

    Greedy answers and scores equal those of transformers up to rounding; samples at the same seed
    differ. Log-probabilities are float32 of logits in the dtype of the weights.
    """

    def __init__(
        self,
        process: _Process,
        tokenizer: PreTrainedTokenizerBase,
        window: int | None,
        eos_ids: tuple[int, ...],
    ) -> None:
        self._process, self._tokenizer = process, tokenizer
        self.window, self.eos_ids = window, eos_ids

    def score(
        self, questions: Sequence[ScoreRequest], *, progress: Callable[[int], object] | None = None
    ) -> list[Scored]:
        # Sorted by context, so that vLLM's prefix cache is used.
        order = sorted(range(len(questions)), key=lambda place: questions[place].context)
        found: dict[int, Scored] = {}
        for first in range(0, len(order), ROWS):
            places = order[first : first + ROWS]
            rows = [
                {"ids": [*one.context, *one.continuation], "start": len(one.context)}
                for one in (questions[place] for place in places)
            ]
            replies = self._request({"score": rows})
            found |= {p: Scored(**reply) for p, reply in zip(places, replies, strict=True)}
            if progress is not None:
                progress(len(places))
        return [found[place] for place in range(len(questions))]

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        settings: GenerationSettings,
        *,
        progress: Callable[[int], object] | None = None,
    ) -> list[Generation]:
        count = len(prompts)
        seeds: Sequence[int | None] = [None] * count
        if settings.temperature > 0:
            assert settings.seeds is not None, "sampling needs a seed for each row"
            seeds = settings.seeds
        common = {
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "stop": list(settings.stop_strings),
            "stop_token_ids": list(settings.stop_ids),
            "ignore_eos": True,  # only our stop ids end a row
            "detokenize": bool(settings.stop_strings),
        }
        rows = [
            _Row(list(prompt), cap, seed)
            for prompt, cap, seed in zip(prompts, settings.caps(count), seeds, strict=True)
        ]
        found: list[Generation] = []
        for first in range(0, count, ROWS):
            batch = rows[first : first + ROWS]
            rule = settings.stop_rule(self._tokenizer, [row.prompt for row in batch])
            found += self._finished(batch, rule, common)
            if progress is not None:
                progress(len(batch))
        return found

    def _finished(
        self, rows: Sequence[_Row], rule: StopRule, common: dict[str, Any]
    ) -> list[Generation]:
        """Decode until each row has ended by the rule."""
        found: dict[int, Generation] = {}
        going = list(range(len(rows)))
        while going:
            replies = self._request({"write": [rows[place].request(common) for place in going]})
            for place, reply in zip(going, replies, strict=True):
                row = rows[place]
                if reply["finish_reason"] not in ("stop", "length"):
                    raise RuntimeError(f"vLLM gave a row up ({reply['finish_reason']})")
                row.tokens += reply["ids"]
                ended = row.tokens[-1] in rule.stop_ids or len(row.tokens) >= row.cap
                verdict = rule.replay(row.tokens, slot=place, ended=ended)
                if verdict is not None:
                    found[place] = Generation(row.prompt, *verdict)
            going = [place for place in going if place not in found]
        return [found[place] for place in range(len(rows))]

    def _request(self, content: Mapping[str, object]) -> Any:
        reply = self._process.request(content)
        if reply is None:
            raise RuntimeError(
                f"vLLM's process ended (exit code {self._process.end()}); its reason is above"
            )
        return reply


def environment(device: torch.device | None = None) -> dict[str, str]:
    """Return the environment of a vLLM process: no ranks of the launcher, and no telemetry.

    Args:
        device: the GPU that the process sees.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in _LAUNCHER and not name.startswith(_LAUNCHERS)
    }
    if device is not None and device.type == "cuda" and device.index is not None:
        visible = kept.get("CUDA_VISIBLE_DEVICES")
        own = visible.split(",")[device.index] if visible else str(device.index)
        kept["CUDA_VISIBLE_DEVICES"] = own
    return (
        {"VLLM_LOGGING_LEVEL": "WARNING"}
        | kept
        | {
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine ends with its process
        }
    )
