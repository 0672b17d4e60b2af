"""Reference log-probs, computed once in shards on disk that later starts reuse."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from tqdm import tqdm

from sft.distributed.fsdp_forward import eval_mode, join_remaining_forwards, synchronized_forwards
from sft.packing.layout import Document, Segment, best_fit, lay_out
from sft.packing.logprobs import batch_tokens, log_probs, row_layout, sequence_sums
from sft.run.fingerprint import fingerprint
from sft.system.atomic_files import read_json, write_json
from sft.system.run_marker import recording

log = logging.getLogger(__name__)

SHARD = 64  # pairs; a kill loses the work of one shard for each process


def pair_document(row: dict[str, Any]) -> Document:
    """Return a pair as a document: the prompt is the trunk, the answers are its branches."""
    prompt = row["prompt_ids"]
    return Document(
        Segment(prompt, [False] * len(prompt)),
        (
            Segment(row["chosen_ids"], row["chosen_scored"]),
            Segment(row["rejected_ids"], row["rejected_scored"]),
        ),
    )


def reference_log_probs(
    model: Any,
    rows: Sequence[dict[str, Any]],
    *,
    folder: Path,
    device: torch.device,
    autocast: torch.dtype | None = None,
) -> list[tuple[float, float]]:
    """Return the log-probs of chosen and rejected under the current weights, summed over tokens.

    Shards that are missing in `folder` are computed and written; processes share the work, also
    with sharded weights. The name of `folder` contains the hash of weights and rows, so that no
    shard is stale.
    """
    state = PartialState()
    count = -(-len(rows) // SHARD)
    paths = [folder / f"shard-{i:05d}.json" for i in range(count)]
    mine = [i for i in range(state.process_index, count, state.num_processes)]
    missing = [i for i in mine if read_shard(paths[i]) is None]
    folder.mkdir(parents=True, exist_ok=True)
    # All processes write here, but the run's marker only notes the writes of the main one.
    with recording(folder):
        with synchronized_forwards(model), eval_mode(model):
            for i in tqdm(missing, desc="reference log-probs", disable=not state.is_main_process):
                shard = [pair_document(row) for row in rows[i * SHARD : (i + 1) * SHARD]]
                sums = _sums(model, shard, device=device, autocast=autocast)
                write_json(paths[i], {"sums": sums, "sha256": fingerprint(sums)})
            join_remaining_forwards()
        state.wait_for_everyone()
    shards = [read_shard(path) for path in paths]
    return [(chosen, rejected) for shard in shards for chosen, rejected in shard or []]


def _sums(
    model: Any, shard: Sequence[Document], *, device: torch.device, autocast: torch.dtype | None
) -> list[list[float]]:
    sums: list[list[float]] = [[]] * len(shard)
    for part in best_fit([len(d) for d in shard], row_length=batch_tokens(device)):
        batch = lay_out([shard[j] for j in part], packing=True, rows=row_layout(model)).to(device)
        with (
            torch.no_grad(),
            torch.autocast(device.type, dtype=autocast, enabled=autocast is not None),
        ):
            pairs = sequence_sums(log_probs(model, batch), batch).view(-1, 2).tolist()
        for j, pair in zip(part, pairs, strict=True):
            sums[j] = pair
    return sums


def read_shard(path: Path) -> list[list[float]] | None:
    """Return the sums of a shard, or None if it is missing or (with a warning) damaged."""
    shard = read_json(path)
    if isinstance(shard, dict) and fingerprint(shard.get("sums")) == shard.get("sha256"):
        sums: list[list[float]] = shard["sums"]
        return sums
    if path.is_file():
        log.warning("%s is damaged; computing it again", path)
    return None
