"""Local folders that replace the hub: real configurations, rows with the columns of real data sets.

The weight file has no tensors: planning and checks never read them.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoConfig

from sft.config.preset import load_preset
from sft.config.sections import Preset, Source
from sft.system.atomic_files import write_jsonl

# Shapes from the published config.json of each base that a preset names.
CONFIGS = {
    "deepseek-ai/deepseek-llm-7b-base": (
        "llama",
        {
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 30,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "vocab_size": 102400,
            "max_position_embeddings": 4096,
        },
    ),
    "deepseek-ai/deepseek-llm-67b-base": (
        "llama",
        {
            "hidden_size": 8192,
            "intermediate_size": 22016,
            "num_hidden_layers": 95,
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
            "vocab_size": 102400,
            "max_position_embeddings": 4096,
        },
    ),
    "meta-llama/Meta-Llama-3-8B": (
        "llama",
        {
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "vocab_size": 128256,
            "max_position_embeddings": 8192,
        },
    ),
    "Qwen/Qwen3-0.6B-Base": (
        "qwen3",
        {
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 151936,
            "max_position_embeddings": 32768,
            "tie_word_embeddings": True,
        },
    ),
    "Qwen/Qwen3-8B-Base": (
        "qwen3",
        {
            "hidden_size": 4096,
            "intermediate_size": 12288,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 151936,
            "max_position_embeddings": 32768,
        },
    ),
    "HuggingFaceTB/SmolLM2-135M": (
        "llama",
        {
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "vocab_size": 49152,
            "max_position_embeddings": 8192,
            "tie_word_embeddings": True,
        },
    ),
    "HuggingFaceTB/SmolLM2-1.7B": (
        "llama",
        {
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 24,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "vocab_size": 49152,
            "max_position_embeddings": 8192,
            "tie_word_embeddings": True,
        },
    ),
}


def _chat(question, answer):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _math(i, answer):
    return {"type": "GSM_Rephrased", "query": f"What is {i} + {i}?", "response": answer}


def _code(i, answer):
    return {"instruction": f"Print {i} in Python.", "response": answer}


def _talk(i, answer):
    prompt = f"Tell me about the number {i}."
    messages = [*_chat(prompt, answer), *_chat("Thank you!", "You are welcome.")]
    return {"prompt": prompt, "prompt_id": f"id{i}", "messages": messages}


def _pair(i, answer):
    prompt = f"Say {i}."
    chosen, rejected = _chat(prompt, answer), _chat(prompt, f"Not {i}.")
    row = {"prompt": prompt, "prompt_id": f"id{i}", "chosen": chosen, "rejected": rejected}
    return row | {"messages": chosen, "score_chosen": 8.0, "score_rejected": 4.0}


# A row of each data set that a preset names, with its columns.
ROWS = {
    "meta-math/MetaMathQA": _math,
    "ise-uiuc/Magicoder-Evol-Instruct-110K": _code,
    "HuggingFaceH4/ultrachat_200k": _talk,
    "HuggingFaceH4/ultrafeedback_binarized": _pair,
}


def stand_in(
    path: Path, folder: Path, tokenizer, *, depth: int | None = 2, words: int = 20, rows: int = 40
) -> list[str]:
    """Return overrides that replace everything a preset loads from the hub by local folders.

    Args:
        depth: layers of the stand-in; None keeps all.
        words: of each row's answer.
        rows: of each data set.
    """
    preset: Preset = load_preset(path)
    base = folder / "base"
    kind, shape = CONFIGS[preset.model.name_or_path]
    shape = shape | ({"num_hidden_layers": depth} if depth else {})
    AutoConfig.for_model(kind, **shape, eos_token_id=0).save_pretrained(base)
    save_file({"none": torch.zeros(1)}, base / "model.safetensors")
    tokenizer.save_pretrained(base)

    def local(source: Source) -> dict:
        file = folder / f"{source.kind or 'pairs'}.jsonl"
        made = [ROWS[source.path](i, f"{i} " + "so " * words) for i in range(rows)]
        write_jsonl(file, made)
        kept = {"kind": source.kind} if source.kind else {}
        return {"path": str(file), "license": source.license} | kept

    data = preset.data
    return [
        f"model.name_or_path={base}",
        f"data.sft={json.dumps([local(s) for s in data.sft])}",
        f"data.preference={json.dumps([local(s) for s in data.preference])}",
        "eval.tasks=[]",
    ]
