"""Add tokens that a chat template needs and the base lacks; under LoRA their rows are trained."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AddedToken, AutoTokenizer, PreTrainedTokenizerBase

from sft.config.sections import ModelSection
from sft.distributed.collectives import run_on_main
from sft.errors import UserError
from sft.model.model_config import read_model_config
from sft.model.weight_files import read_weights
from sft.run.adapters import is_adapter, tokenizer_path
from sft.run.fingerprint import fingerprint, model_fingerprint
from sft.run.revisions import located
from sft.run.stage_cache import Stage
from sft.system.atomic_files import writing

log = logging.getLogger(__name__)


def add_tokens(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str]) -> None:
    """Register each of `tokens` as one special token; new ones get the highest ids."""
    special = [AddedToken(token, special=True, normalized=False) for token in tokens]
    added = tokenizer.add_tokens(special, special_tokens=True)
    if tokens:
        log.info("tokens: %s (%d new); their embeddings are trained", " ".join(tokens), added)


def check_vocabulary(
    tokenizer: PreTrainedTokenizerBase, *, rows: int, added: Sequence[str]
) -> None:
    """Check that the model has an embedding for every token of the tokenizer.

    Args:
        rows: number of rows of the embedding.
        added: tokens that get their rows later (`base_with_tokens`).
    """
    at = f"model.name_or_path={tokenizer.name_or_path}: the tokenizer"
    vocabulary = tokenizer.get_vocab()
    # Unused special tokens may lie beyond the last row, as Gemma 3's image token.
    plain = vocabulary.keys() - tokenizer.added_tokens_encoder.keys()
    if any(vocabulary[token] >= rows for token in plain):
        raise UserError(
            f"{at} has {len(plain):,} tokens and the model embeddings for {rows:,}; give the "
            "tokenizer that the model was trained with"
        )
    for role in ("eos_token", "bos_token", "pad_token"):
        token = getattr(tokenizer, role)
        if token is None or token in added:
            continue
        token_id = vocabulary.get(token)
        if token_id is None:
            raise UserError(
                f"{at}'s {role} {token!r} is none of its tokens; correct it in "
                "tokenizer_config.json"
            )
        if token_id >= rows:
            raise UserError(
                f"{at}'s {role} {token} is number {token_id:,}, and the model has embeddings for "
                f"{rows:,} tokens; correct it in tokenizer_config.json, or list it in "
                "model.add_tokens, which gives it one"
            )


def base_with_tokens(
    base: str, section: ModelSection, tokenizer: PreTrainedTokenizerBase, *, run: Path
) -> str:
    """Return the base, or a copy in run/base with rows for the `model.add_tokens` that it lacks.

    The copy is then the base of every stage and adapter. New rows of the embedding and of an untied
    head are the mean of the others. An adapter as base is refused.

    Args:
        tokenizer: the tokenizer after `add_tokens`.
    """
    if not section.add_tokens:
        return base
    trust = section.trust_remote_code
    place = located(tokenizer_path(base))
    known = AutoTokenizer.from_pretrained(**place, trust_remote_code=trust).get_vocab()
    rows = read_model_config(base, trust_remote_code=trust).get_text_config().vocab_size
    new = [token for token in section.add_tokens if known.get(token, rows) >= rows]
    if not new:
        return base
    if is_adapter(base):
        raise UserError(
            f"model.add_tokens={section.add_tokens}: {base} is an adapter, which has no embeddings "
            "to add to; merge it into its base first"
        )
    stage = Stage(
        run / "base",
        {"weights": model_fingerprint(base), "tokens": fingerprint(section.add_tokens)},
    )
    target = stage.folder / "model"

    def grow() -> None:
        if stage.finished() is not None:
            return
        stage.begin()
        model = read_weights(
            base,
            config=read_model_config(base, trust_remote_code=trust),
            dtype="auto",
            attn_implementation="eager",
            trust_remote_code=trust,
        )
        _add_rows(model, tokenizer.convert_tokens_to_ids(new))  # type: ignore[arg-type]
        with writing(target):
            model.save_pretrained(target)
            tokenizer.save_pretrained(target)
        stage.finish(outputs=["model"], facts={"tokens": len(new)})

    run_on_main(grow)
    return str(target.resolve())


def _add_rows(model: Any, ids: list[int]) -> None:
    rows = max(ids) + 1
    if rows > model.get_input_embeddings().weight.shape[0]:  # some embeddings have spare rows
        model.resize_token_embeddings(rows, mean_resizing=False)
    with torch.no_grad():
        for matrix in {id(m.weight): m.weight for m in _matrices(model).values()}.values():
            # New tokens have the highest ids, so the rows below are those of the known ones.
            matrix[ids] = matrix[: min(ids)].mean(0, dtype=torch.float32).to(matrix.dtype)


def token_rows(model: Any, ids: Sequence[int]) -> dict[str, list[int]]:
    """Return the rows that PEFT trains with an adapter, by the name of their matrix."""
    matrices = _matrices(model)
    if any(getattr(m, "bias", None) is not None for m in matrices.values()):
        raise UserError(
            "model.add_tokens with LoRA: this model's head has a bias, which peft leaves out; set "
            "lora.r=0 or a chat template of tokens that the model has"
        )
    first = next(iter(matrices.values()))
    names = [n for n, m in matrices.items() if m is first or m.weight is not first.weight]
    return {name: list(ids) for name in names}


def _matrices(model: Any) -> dict[str, Any]:
    """Return the embedding and the head by their full names, the embedding first."""
    both = (model.get_input_embeddings(), model.get_output_embeddings())
    named = {
        name: module for name, module in model.named_modules() if any(module is m for m in both)
    }
    return dict(sorted(named.items(), key=lambda item: item[1] is not both[0]))
