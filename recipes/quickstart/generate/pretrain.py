"""Pre-train the quickstart's base model from scratch: tokenizer, pages, training, files.

    python recipes/quickstart/generate/pretrain.py            # about 40 minutes on 2 CPU cores

Writes `base/` (model and tokenizer), `data/` (rows) and `manifest.json` (hashes). The recipe
follows the paper at a small scale (arXiv 2401.02954, section 2): AdamW (0.9, 0.95, weight decay
0.1), clip 1.0, a multi-step learning rate; a Llama of five million parameters instead of seven
billion.
"""

from __future__ import annotations

if __name__ == "__main__":  # Ctrl-C during the imports below is no traceback either.
    from sft import end_on_interrupt

    end_on_interrupt()

import argparse
import itertools
import math
import os
import shutil
import sys
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from recipes.quickstart.generate.gazetteer import make_gazetteer
from recipes.quickstart.generate.manifest import write_manifest
from recipes.quickstart.generate.pages import pages
from recipes.quickstart.generate.world import write_world
from sft.errors import UserError
from sft.run.command import run_command

HERE = Path(__file__).parents[1]  # recipes/quickstart
END, PAD, TURN, TURN_END = "<|endoftext|>", "<|pad|>", "<|im_start|>", "<|im_end|>"
VOCABULARY = 2048
# (share of the tokens, tokens a row, rows a step): short rows train faster; the last fifth, where
# the learning rate falls, trains every position that the chat model will use.
PHASES = ((0.8, 640, 2), (0.2, 1024, 1))
CONTEXT = 1024
MAX_LEARNING_RATE = 1e-3
WARM_UP_STEPS = 100


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer that splits digits; no page uses its turn tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END, PAD, TURN, TURN_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=24,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[TURN, TURN_END],
        clean_up_tokenization_spaces=False,
        model_max_length=CONTEXT,
    )


def new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Build a Llama of 5.5 M parameters: few wide layers, which a CPU decodes fastest."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=320,
        intermediate_size=832,
        num_hidden_layers=4,
        num_attention_heads=5,
        num_key_value_heads=5,
        max_position_embeddings=CONTEXT,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    # On a CPU, plain attention trains faster than the fused kernel at this size.
    model = LlamaForCausalLM._from_config(config, attn_implementation="eager")
    # Tokens begin as distinct directions (0.02 learns at half the pace), multilayer perceptrons as
    # nothing, and attention as a faint copy of what it looks at.
    torch.nn.init.normal_(model.model.embed_tokens.weight, std=0.1)
    for layer in model.model.layers:
        a, m = layer.self_attn, layer.mlp
        for linear in (a.q_proj, a.k_proj, a.v_proj, m.gate_proj, m.up_proj):
            torch.nn.init.normal_(linear.weight, std=config.hidden_size**-0.5)
        torch.nn.init.zeros_(m.down_proj.weight)
        with torch.no_grad():
            a.o_proj.weight.copy_(0.1 * a.v_proj.weight.T)
    return model


def learning_rate(step: int, steps: int) -> float:
    """Return the multi-step rate: warm-up, the maximum, 31.6 % of it at 80 %, 10 % at 90 %."""
    if step < WARM_UP_STEPS:
        return MAX_LEARNING_RATE * (step + 1) / WARM_UP_STEPS
    share = step / steps
    return MAX_LEARNING_RATE * (1.0 if share < 0.8 else 0.316 if share < 0.9 else 0.1)


def token_stream(tokenizer: PreTrainedTokenizerFast, *, seed: int, tokens: int) -> torch.Tensor:
    """Return the first `tokens` tokens of the pages, separated by the end token: [tokens]."""
    stream: list[int] = []
    source = pages(seed, make_gazetteer(seed))
    while len(stream) < tokens:
        batch = list(itertools.islice(source, 500))
        for ids in tokenizer(batch, verbose=False).input_ids:  # rows are cut later
            stream += [*ids, tokenizer.eos_token_id]
    return torch.tensor(stream[:tokens])


def step_batches(stream: torch.Tensor) -> list[torch.Tensor]:
    """Cut the stream into a batch per step, [rows, tokens], rows shuffled within a phase."""
    batches: list[torch.Tensor] = []
    start = 0
    for share, row, rows_a_step in PHASES:
        count = int(share * len(stream)) // (row * rows_a_step)
        part = stream[start : start + count * row * rows_a_step].view(-1, row)
        start += part.numel()
        batches += part[torch.randperm(len(part))].split(rows_a_step)
    return batches


def train(
    model: LlamaForCausalLM, stream: torch.Tensor, *, seed: int, compiled: bool = True
) -> list[float]:
    """Train on the stream once, rows shuffled, in float32 on every processor.

    Returns the loss of every step. `compiled` needs a C++ compiler and is half as fast again.
    """
    torch.manual_seed(seed)
    batches = step_batches(stream)
    steps = len(batches)
    embedding = model.get_input_embeddings().weight
    decayed = [p for p in model.parameters() if p.dim() > 1 and p is not embedding]
    other = [p for p in model.parameters() if p.dim() <= 1 or p is embedding]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": other, "weight_decay": 0.0}],
        lr=MAX_LEARNING_RATE,
        betas=(0.9, 0.95),
        fused=True,
    )
    forward = torch.compile(model, dynamic=False) if compiled else model  # once per row length
    losses: list[float] = []
    start = time.monotonic()
    for step, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        loss = forward(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        if step % 100 == 99:
            recent = sum(losses[-100:]) / 100
            seconds = time.monotonic() - start
            left = seconds / (step + 1) * (steps - step - 1)
            rate = sum(b.numel() for b in batches[: step + 1]) / seconds
            print(
                f"step {step + 1}/{steps}  loss {recent:.3f}  {rate:.0f} tokens/s  "
                f"{math.ceil(left / 60)} min left",
                flush=True,
            )
    return losses


def main() -> int:
    """Parse the command line and train; the exit codes are those of `run_command`."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tokens", type=int, default=7_200_000)
    parser.add_argument("--out", type=Path, default=HERE, help="where base/ and data/ go")
    parser.add_argument("--no-compile", action="store_true", help="without a C++ compiler")
    args = parser.parse_args()

    def work() -> None:
        check(args)
        make(args)

    return run_command(work, resumable=False)


def check(args: argparse.Namespace) -> None:
    """Check before training what would otherwise fail after up to 40 minutes.

    Raises:
        UserError: too few tokens for a step of each phase, or no C++ compiler.
    """
    least = max(math.ceil(length * rows / share) for share, length, rows in PHASES)
    if args.tokens < least:
        raise UserError(f"--tokens {args.tokens} must be {least} or more, a step of each phase")
    compilers = (os.environ.get("CXX"), "c++", "g++", "clang++")
    if not args.no_compile and not any(name and shutil.which(name) for name in compilers):
        raise UserError(
            "torch.compile needs a C++ compiler, and there is none (g++, clang++ or $CXX); install "
            "one, or give --no-compile, which takes half as long again"
        )
    for name in ("base", "data"):
        (args.out / name).mkdir(parents=True, exist_ok=True)


def make(args: argparse.Namespace) -> None:
    """Train tokenizer and model and write both, with the rows and the manifest."""
    torch.set_num_threads(2)
    torch.manual_seed(args.seed)
    sample = list(itertools.islice(pages(args.seed, make_gazetteer(args.seed)), 3000))
    tokenizer = train_tokenizer(sample)
    print(f"tokenizer: {len(tokenizer)} tokens")
    stream = token_stream(tokenizer, seed=args.seed, tokens=args.tokens)
    model = new_model(tokenizer)
    print(f"model: {model.num_parameters() / 1e6:.2f} M parameters, {len(stream)} tokens")
    train(model, stream, seed=args.seed, compiled=not args.no_compile)
    model.to(torch.bfloat16).save_pretrained(args.out / "base")
    tokenizer.save_pretrained(args.out / "base")
    write_world(args.seed, args.out / "data")
    write_manifest(args.out, seed=args.seed, tokens=args.tokens)


if __name__ == "__main__":
    sys.exit(main())
