"""A stand-in for the parts of vLLM 0.33 that this project uses, computed by transformers.

Signatures are those of vLLM; anything else is refused. These rules of vLLM are implemented: a
prompt must leave space for one token; token ids of an answer include the stop id or the token that
completes a stop string; stop strings are searched in text that is decoded token by token after the
prompt; prompt log-probabilities hold each token and the most likely one. Random draws differ from
vLLM: one uniform number per token, as in `eval.generation.generate`, so that the two can be
compared. `install` writes it as a package for another process.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import torch
from tokenizers.decoders import DecodeStream
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

__version__ = "0.33.0"


def install(folder: Path) -> Path:
    """Return a folder for PYTHONPATH in which this file is the package `vllm`, for a CPU."""
    package = folder / "vllm"
    package.mkdir(parents=True)
    shutil.copy(__file__, package / "__init__.py")
    (package / "platforms.py").write_text(
        "class CpuPlatform:\n    device_type = 'cpu'\n\n\ncurrent_platform = CpuPlatform()\n"
    )
    return folder


class TokensPrompt(TypedDict):
    prompt_token_ids: list[int]


@dataclass
class SamplingParams:
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop: list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    prompt_logprobs: int | None = None
    detokenize: bool = True

    def __post_init__(self) -> None:
        if self.stop and not self.detokenize:
            raise ValueError("stop strings are only supported when detokenize is True.")
        if not 0 < self.top_p <= 1 or (self.max_tokens or 1) < 1:
            raise ValueError(f"top_p {self.top_p}, max_tokens {self.max_tokens}")


@dataclass
class Logprob:
    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass
class CompletionOutput:
    index: int
    text: str
    token_ids: list[int]
    finish_reason: str | None = None
    stop_reason: int | str | None = None


@dataclass
class RequestOutput:
    prompt_token_ids: list[int] | None
    prompt_logprobs: list[dict[int, Logprob] | None] | None
    outputs: list[CompletionOutput]


class LLM:
    def __init__(
        self,
        model: str,
        *,
        tokenizer: str | None = None,
        trust_remote_code: bool = False,
        dtype: str = "auto",
        load_format: str = "auto",
        seed: int = 0,
        gpu_memory_utilization: float = 0.92,
        max_model_len: int | None = None,
        generation_config: str = "auto",
        logprobs_mode: str = "raw_logprobs",
        enable_prefix_caching: bool | None = None,
    ) -> None:
        assert logprobs_mode == "raw_logprobs" and generation_config == "vllm"
        assert load_format == "safetensors", "pickled weights run what they like"
        torch.set_num_threads(1)
        self._model = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype))
        self._tokenizer = AutoTokenizer.from_pretrained(tokenizer or model)
        self.model_config: Any = self._model.config
        own = self.model_config.max_position_embeddings
        self.model_config.max_model_len = own if max_model_len in (None, -1) else max_model_len

    @torch.inference_mode()
    def generate(
        self,
        prompts: list[TokensPrompt],
        sampling_params: SamplingParams | list[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        if not isinstance(sampling_params, list):
            sampling_params = [sampling_params or SamplingParams()] * len(prompts)
        return [
            self._one(prompt["prompt_token_ids"], params)
            for prompt, params in zip(prompts, sampling_params, strict=True)
        ]

    def _one(self, ids: list[int], params: SamplingParams) -> RequestOutput:
        if not 0 < len(ids) < self.model_config.max_model_len:
            raise ValueError(f"a prompt of {len(ids)} tokens does not fit")
        cache = DynamicCache(config=self._model.config)
        logits = self._read(ids, cache)
        known = None if params.prompt_logprobs is None else self._known(ids, logits)
        draws = torch.Generator().manual_seed(params.seed or 0)
        stream, text, written = DecodeStream(ids=ids, skip_special_tokens=True), "", []
        reason: str | None = None
        stopped_by: int | str | None = None
        while reason is None:
            token = self._choose(logits[-1], params, draws)
            written.append(token)
            by_id = token in (params.stop_token_ids or ())
            eos = not params.ignore_eos and token == self._tokenizer.eos_token_id
            if params.detokenize and not by_id:
                text += stream.step(self._tokenizer._tokenizer, token) or ""
            found = next((stop for stop in params.stop or () if stop in text), None)
            full = len(ids) + len(written) >= self.model_config.max_model_len
            if by_id or eos or found is not None:
                reason, stopped_by = "stop", token if by_id else found
            elif len(written) == params.max_tokens or full:
                reason = "length"
            else:
                logits = self._read([token], cache)
        if isinstance(stopped_by, str):
            text = text[: text.find(stopped_by)]
        answer = CompletionOutput(0, text, written, reason, stopped_by)
        return RequestOutput(ids, known, [answer])

    def _read(self, ids: list[int], cache: DynamicCache) -> torch.Tensor:
        tokens = torch.tensor([ids])
        return (
            self._model(input_ids=tokens, past_key_values=cache, use_cache=True).logits[0].float()
        )

    def _known(self, ids: list[int], logits: torch.Tensor) -> list[dict[int, Logprob] | None]:
        found: list[dict[int, Logprob] | None] = [None]
        for token, row in zip(ids[1:], logits[:-1].log_softmax(-1), strict=True):
            best = int(row.argmax())
            rank = int((row >= row[token]).sum())
            entry = {token: Logprob(float(row[token]), rank), best: Logprob(float(row[best]), 1)}
            found.append(entry)
        return found

    def _choose(self, logits: torch.Tensor, params: SamplingParams, draws: torch.Generator) -> int:
        if params.temperature < 1e-5:
            return int(logits.argmax())
        chances, order = (logits / params.temperature).softmax(-1), torch.arange(len(logits))
        if params.top_p < 1:
            chances, order = chances.sort(descending=True)
            chances = chances.masked_fill(chances.cumsum(-1) - chances >= params.top_p, 0.0)
        cumulative = chances.cumsum(-1)
        aim = torch.rand(1, generator=draws) * cumulative[-1]
        place = int(torch.searchsorted(cumulative, aim, right=True))
        return int(order[min(place, len(order) - 1)])
