"""The backend of vLLM, in a process and usually in a Python of its own.

vLLM fixes versions of torch and transformers that are not ours, so it lives in an environment of
its own (`eval.vllm_python`); and a process that ends gives back all of its GPU memory, which the
next stage of training needs. Token ids go in and come out. What ends an answer is judged here, on
its tokens, by the rule of `eval.generation.generate`: vLLM stops at what it takes for a stop
string, and a row that the rule does not find at its end is continued, as one that thinks is at each
stop string.

Compared with transformers on vLLM 0.32.0's CPU build in float32; not yet run on a GPU.
"""

import functools
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
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
# Rows of one order: enough to keep every slot of vLLM's scheduler full nearly to the end, and few
# enough that progress shows and that a line of JSON stays within some megabytes.
ROWS = 2048
# Of the GPU memory that is free; the rest is for what vLLM does not count, logits of prompts above
# all.
MEMORY_SHARE = 0.9
# Seconds to wait for the process, which ends by itself when its orders do.
PATIENCE = 30
# What the launcher tells its own processes, and vLLM must not take for itself: torch would look for
# vLLM's only rank in the launcher's store (torch.distributed.rendezvous), and wait for ever.
_LAUNCHER = (
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "ROLE_NAME", "MASTER_ADDR", "MASTER_PORT"),
    *("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE"),
)
_LAUNCHERS = ("TORCHELASTIC_", "ACCELERATE_")
_PROBE = """
import sys
sys.path = [place for place in sys.path if place]  # not the current directory, which -c puts first
import json, vllm
from vllm import LLM  # most of vLLM, and of what it needs, is read only now
from vllm.platforms import current_platform
print(json.dumps([vllm.__version__, current_platform.device_type]))
"""


@dataclass(frozen=True)
class Vllm:
    """An installed vLLM: the Python that has it, its version, and the device it computes on."""

    python: str
    version: str
    device: str  # cuda, cpu, ...; empty where it finds none


@functools.cache
def find_vllm(python: str | None) -> Vllm:
    """The vLLM of a Python, of this one where None.

    Raises:
        UserError: there is no such Python, or it has no vLLM that can be imported.
    """
    path = str(Path(python).expanduser()) if python else sys.executable
    remedy = (
        "install it in an environment of its own (python3 -m venv ~/vllm && ~/vllm/bin/pip install "
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
    except (IndexError, TypeError, ValueError):  # it ran something else, as echo does
        raise UserError(f"eval.vllm_python={path} is no Python; {remedy}") from None
    return Vllm(path, version, device or "")


def check_vllm(python: str | None, device: torch.device) -> Vllm:
    """The vLLM to measure with.

    Raises:
        UserError: as `find_vllm`, or it does not compute on the run's device.
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
        tokenizer_folder: the tokenizer on disk, with which vLLM looks for stop strings.
        window: the model's; vLLM's own limit applies where it is smaller.
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
            "max_model_len": -1,  # the model's own, or as much as fits in memory
            "generation_config": "vllm",  # ignore the model's: every setting comes with a row
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
    process = _Process.start(vllm, device)
    try:
        limit = process.ask({"load": load})
        if limit is None:
            raise UserError(
                f"vLLM {vllm.version} did not load {model.path} (exit code {process.end()}, its "
                "reason is above); set eval.backend=transformers"
            )
        # A row of vLLM is never as long as its limit: one token has to be written after it.
        limit -= 2
        window = model.window
        if window is not None and limit < window - 2:
            log.warning("vLLM: window %d instead of %d tokens, to fit in memory", limit, window)
        log.info("measured by: vLLM %s, %s, %s", vllm.version, device.type, load["dtype"])
        window = limit if window is None else min(window, limit)
        yield VllmBackend(process, tokenizer, window, model.eos_ids)
    finally:
        process.end()


@dataclass(frozen=True)
class _Process:
    """The child: a line of JSON each way."""

    popen: "subprocess.Popen[str]"

    @classmethod
    def start(cls, vllm: Vllm, device: torch.device) -> "_Process":
        # A session of its own: Ctrl-C is for this process, which then ends the child.
        return cls(
            subprocess.Popen(
                [vllm.python, str(CHILD)],
                env=environment(device),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                encoding="utf-8",
                errors="replace",
                start_new_session=True,
            )
        )

    def ask(self, order: dict[str, Any]) -> Any:
        """The reply, or None from a process that is gone."""
        assert self.popen.stdin is not None and self.popen.stdout is not None
        with suppress(BrokenPipeError):
            self.popen.stdin.write(json.dumps(order) + "\n")
            self.popen.stdin.flush()
        line = self.popen.stdout.readline()
        return json.loads(line) if line else None

    def end(self) -> int:
        """Its exit code, once it and whatever it started are gone."""
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

    def order(self, common: dict[str, Any]) -> dict[str, Any]:
        params = common | {"max_tokens": self.cap - len(self.tokens)}
        if self.seed is not None:
            # Of a row that goes on, other draws than those that it had.
            params["seed"] = self.seed + len(self.tokens)
        return {"ids": self.prompt + self.tokens, "params": params}


class VllmBackend(Backend):
    """A model in vLLM. Its draws are not those of transformers at the same seed; greedy answers
    and scores are the same up to rounding. Log-probabilities are float32 of logits in the weights'
    dtype."""

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
        # By context, so that what they begin with is asked for together.
        order = sorted(range(len(questions)), key=lambda place: questions[place].context)
        found: dict[int, Scored] = {}
        for first in range(0, len(order), ROWS):
            places = order[first : first + ROWS]
            rows = [
                {"ids": [*one.context, *one.continuation], "start": len(one.context)}
                for one in (questions[place] for place in places)
            ]
            replies = self._ask({"score": rows})
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
            assert settings.seeds is not None, "a seed for each row that is sampled"
            seeds = settings.seeds
        common = {
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "stop": list(settings.stop_strings),
            "stop_token_ids": list(settings.stop_ids),
            "ignore_eos": True,  # the stop ids are all that counts
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
        """The rows decoded until each has ended by the rule."""
        found: dict[int, Generation] = {}
        going = list(range(len(rows)))
        while going:
            replies = self._ask({"write": [rows[place].order(common) for place in going]})
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

    def _ask(self, order: dict[str, Any]) -> Any:
        reply = self._process.ask(order)
        if reply is None:
            raise RuntimeError(
                f"vLLM's process ended (exit code {self._process.end()}); its reason is above"
            )
        return reply


def environment(device: torch.device | None = None) -> dict[str, str]:
    """This process's environment for one that holds vLLM: without the launcher's ranks, without
    telemetry, and with vLLM's engine in the process itself, which then ends as a whole. `device`
    is the GPU that it sees, where there are several."""
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
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        }
    )
