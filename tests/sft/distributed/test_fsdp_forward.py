"""Weights that two processes have in parts are the whole model, whoever makes how many passes."""

import pytest
from launching import in_two_processes
from tiny_models import make_tiny_model

SCRIPT = """
import os, sys
os.environ["ACCELERATE_USE_FSDP"] = "true"
import torch
from accelerate import PartialState
from torch.distributed.tensor import DTensor
from sft.config.sections import ModelSection
from sft.errors import UserError
from sft.distributed.fsdp_forward import eval_without_grad, synchronized_forwards
from sft.model.loading import load_model
from sft.model.placement import choose_placement
from sft.distributed.collectives import run_on_main, map_over_ranks

rank = PartialState(cpu=True).process_index
placement = choose_placement(ModelSection(dtype="float32"))
whole = load_model(sys.argv[1], placement)
parts = load_model(sys.argv[1], placement, parts=True)
total = sum(p.numel() for p in whole.parameters())
assert sum(p.to_local().numel() for p in parts.parameters()) < 0.6 * total

def passes(model, lengths):
    with eval_without_grad(model):
        ids = [torch.arange(3, 3 + n)[None] for n in lengths]
        return [model(input_ids=each).logits[0, -1].tolist() for each in ids]

def same(found, lengths):
    torch.testing.assert_close(torch.tensor(found), torch.tensor(passes(whole, lengths)))

def refuse(lengths):
    if rank == 1:
        raise UserError("no")
    return passes(parts, lengths)

def refuse_all():
    passes(parts, [3])
    raise UserError("no")

with synchronized_forwards(parts):
    same(map_over_ranks([2, 3, 4, 5, 6], lambda own: passes(parts, own)), [2, 3, 4, 5, 6])
    same(map_over_ranks([4], lambda own: passes(parts, own)), [4])
    same(run_on_main(lambda: passes(parts, [2, 3])), [2, 3])
    same(run_on_main(lambda: map_over_ranks([2, 3], lambda own: passes(parts, own))), [2, 3])
    for work in (lambda: map_over_ranks([2, 3, 4], refuse), lambda: run_on_main(refuse_all)):
        try:
            work()
        except UserError:
            pass
        else:
            raise AssertionError("raised in one process, and not in all")
    same(map_over_ranks([6, 5], lambda own: passes(parts, own)), [6, 5])

# What was read can be trained: gradients are the mean of the processes'.
assert all(isinstance(p, DTensor) for p in parts.parameters()), "let go"
for model in (whole, parts):
    model(input_ids=torch.arange(3, 9 + rank)[None]).logits.square().mean().backward()
for (name, own), other in zip(whole.named_parameters(), parts.parameters(), strict=True):
    torch.distributed.all_reduce(own.grad)
    torch.testing.assert_close(other.grad.full_tensor(), own.grad / 2, msg=name)
print("done")
"""


@pytest.mark.parametrize("tied", [True, False])
def test_two_processes_lend_each_other_their_parts(tmp_path, tied):
    make_tiny_model(tie_word_embeddings=tied).save_pretrained(tmp_path)
    in_two_processes(SCRIPT, str(tmp_path))
