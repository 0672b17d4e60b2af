"""Measure how much of a LoRA change is lost when merged weights are rounded to bfloat16.

    python tests/benchmarks/merge_loss.py MODEL [--steps 8 16 32 64 128]

Trains LoRA (r=16, alpha 32, every linear layer, AdamW at a constant 1e-4) on Alpaca rows of at most
128 tokens, four per step, in float32 on the CPU. After each given number of steps the adapter is
merged into a float32 copy, which is rounded to bfloat16; both are compared with the base on
held-out rows. The loss is the one that export uses (`sft.export.merge_check.MergeCheck.share`).
"""

if __name__ == "__main__":  # before the slow imports, so that Ctrl-C there ends quietly
    from sft import end_on_interrupt

    end_on_interrupt()

import argparse
import gzip
import itertools
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from arguments import DATA, count, need_data

from sft.chat_template.encoding import EncodedChat, encode_chats
from sft.chat_template.template import ensure_template
from sft.config.sections import LoraSection, ModelSection
from sft.export.merge_check import compare_logits
from sft.model.loading import check_model, load_model, load_tokenizer, load_trainable, save_model
from sft.model.placement import choose_placement
from sft.packing.layout import Document, Segment, lay_out
from sft.packing.logprobs import log_probs, row_layout
from sft.run.command import run_command

CHATS = "sft/alpaca_en_first10k.jsonl.gz"
LONGEST, ROWS, ASKED = 128, 4, 8  # tokens per row, rows per step, held-out rows


def chats(tokenizer: Any) -> Iterator[EncodedChat]:
    """Return the Alpaca rows of at most `LONGEST` tokens, in order."""
    with gzip.open(DATA / CHATS, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in itertools.islice(file, 2000)]
    turns = [
        {
            "messages": [
                {"role": "user", "content": f"{row['instruction']}\n{row['input']}".strip()},
                {"role": "assistant", "content": row["output"]},
            ],
            "origin": f"alpaca:{number}",
        }
        for number, row in enumerate(rows)
        if row["output"].strip()
    ]
    for encoded in encode_chats(tokenizer, turns):
        if isinstance(encoded, EncodedChat) and len(encoded.input_ids) <= LONGEST:
            yield encoded


@torch.no_grad()
def logits_of(model: Any, rows: list[EncodedChat]) -> torch.Tensor:
    """Return float32 logits [tokens of all rows, vocabulary]."""
    found = [model(input_ids=torch.tensor([row.input_ids])).logits[0] for row in rows]
    return torch.cat(found).float()


def main() -> int:
    """Parse the command line and measure; exit as `run_command` does."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--steps", type=count, nargs="+", default=[8, 16, 32, 64, 128])
    given = parser.parse_args()
    return run_command(lambda: measure(given), resumable=False)


def measure(given: argparse.Namespace) -> None:
    """Train, and print the loss after each given number of steps."""
    need_data(CHATS)
    section = ModelSection(given.model, dtype="float32")
    placement = choose_placement(section)
    path = check_model(section)
    tokenizer = load_tokenizer(path, section)
    ensure_template(tokenizer)
    found = chats(tokenizer)
    asked = list(itertools.islice(found, ASKED))
    model = load_trainable(
        path,
        placement,
        lora=LoraSection(r=16, lora_alpha=32),
        seed=0,
        trust_remote_code=False,
    )
    with model.disable_adapter():
        base = logits_of(model.eval(), asked)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.0)
    for step in range(1, max(given.steps) + 1):
        rows = list(itertools.islice(found, ROWS))
        documents = [Document(Segment(row.input_ids, row.trained)) for row in rows]
        batch = lay_out(documents, packing=True, rows=row_layout(model))
        loss = -log_probs(model.train(), batch).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step not in given.steps:
            continue
        with tempfile.TemporaryDirectory() as folder:
            save_model(model, tokenizer, Path(folder) / "adapter")
            merged = load_model(str(Path(folder) / "adapter"), placement).merge_and_unload()
        for parameter in merged.parameters():
            parameter.data = parameter.to(torch.bfloat16).float()
        trained_logits = logits_of(model.eval(), asked)
        check = compare_logits(logits_of(merged, asked), trained=trained_logits, base=base)
        print(f"{step:4} steps: loss {loss.item():.2f}, {check.share:.1%} lost", flush=True)


if __name__ == "__main__":
    sys.exit(main())
