"""A trained model as one whole model on disk, and what its logits lost on the way.

An adapter is merged into its base's weights in float32, then everything is rounded to the dtype
that is published. Rounding to bfloat16 costs little beside what training changed, unless training
changed little: so the loss is measured on real rows and set against the change.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from transformers import AutoConfig, PreTrainedTokenizerBase

from sft.chat import stop_ids
from sft.config import UserError
from sft.model import Placement, load_model, save_model
from sft.run import is_adapter

# Refused where publishing loses more than this share of what training changed, as root mean square
# over logits. Merging exactly and rounding to bfloat16 loses a few hundredths.
LOST = 0.1
# Logits that differ by less are equal: float32 sums in another order.
EQUAL = 1e-4
POSITIONS = 16  # of each row, evenly spaced: a vocabulary's logits at each are kept in memory


@dataclass(frozen=True)
class MergeCheck:
    """Logits of the published model against the trained one, and of the base against it.

    Root mean squares over positions and vocabulary, each position's logits less their mean, which
    the softmax does not see.
    """

    positions: int
    lost: float  # published - trained
    changed: float  # base - trained
    worst: float  # the largest single |published - trained|
    agree: float  # share of positions at which both would write the same token

    @property
    def share(self) -> float:
        """What is lost of what training changed."""
        return self.lost / self.changed if self.changed else float(self.lost > EQUAL)


def publish(
    path: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    base: str,
    rows: Sequence[Sequence[int]],
    folder: Path,
    placement: Placement,
    dtype: torch.dtype,
    trust_remote_code: bool = False,
) -> MergeCheck:
    """Write a trained model (whole or adapter) to `folder` as safetensors, then read it back and
    compare.

    Args:
        path: the model or adapter.
        base: what it was trained from.
        rows: token ids to compare on, of real conversations.
        dtype: of the published weights.

    Raises:
        UserError: the published model's logits are further from the trained one's than `LOST`
            allows.
    """
    options: dict[str, Any] = {"dtype": torch.float32, "trust_remote_code": trust_remote_code}
    changed = _logits(load_model(base, placement, **options), rows)
    model = load_model(path, placement, **options)
    trained = _logits(model, rows)
    if isinstance(model, PeftModel):
        model = model.merge_and_unload()
    # Ends of turn stand in the configuration too: some readers look nowhere else.
    model.config.eos_token_id = stop_ids(tokenizer)
    save_model(model.to(dtype), tokenizer, folder)
    del model
    published = _logits(load_model(str(folder), placement, **options), rows)
    check = compare_logits(published, trained=trained, base=changed)
    if check.share > LOST:
        raise UserError(
            f"{folder}: the published model is not the trained one: its logits on {len(rows)} real "
            f"rows are off by {check.lost:.3g} (root mean square), {check.share:.0%} of what "
            f"training changed ({check.changed:.3g}); publish in float32 (--dtype float32)"
        )
    return check


def compare_logits(
    published: torch.Tensor, *, trained: torch.Tensor, base: torch.Tensor
) -> MergeCheck:
    """Set the distance of two models' logits [P, V] against that of the base's.

    A base with fewer tokens is compared on those that it has.
    """
    off = _centred(published - trained)
    known = min(base.shape[1], trained.shape[1])
    moved = _centred(base[:, :known] - trained[:, :known])
    return MergeCheck(
        positions=trained.shape[0],
        lost=off.square().mean().sqrt().item(),
        changed=moved.square().mean().sqrt().item(),
        worst=off.abs().max().item(),
        agree=(published.argmax(1) == trained.argmax(1)).float().mean().item(),
    )


def stored_dtype(path: str, *, trust_remote_code: bool = False) -> torch.dtype:
    """The dtype that a model's weights are kept in, as its configuration says; else float32."""
    if is_adapter(path):
        path = str(PeftConfig.from_pretrained(path).base_model_name_or_path)
    config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    return config.dtype or torch.float32


def _centred(difference: torch.Tensor) -> torch.Tensor:
    return difference - difference.mean(1, keepdim=True)


@torch.no_grad()
def _logits(model: Any, rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """[P, V] float32 on the CPU: the logits at `POSITIONS` places of each row."""
    device = next(model.parameters()).device
    found = []
    for row in rows:
        count = min(POSITIONS, len(row))
        places = torch.linspace(0, len(row) - 1, count, device=device).long()
        ids = torch.tensor([list(row)], device=device)
        logits = model(input_ids=ids, use_cache=False, logits_to_keep=places).logits[0]
        found.append(logits.float().cpu())
    return torch.cat(found)
