"""The preference losses against a reference written from the papers in float64."""

import math

import pytest
import torch
from tiny_models import make_tiny_model
from trl.trainer.utils import selective_log_softmax

from dpo.loss import LOSSES, PairScores, check_loss, preference_loss
from dpo.reference import pair_document
from sft.config.sections import DpoStage
from sft.errors import UserError
from sft.packing.layout import pack
from sft.packing.logprobs import enable_scoring, log_probs, sequence_sums


def scores(chosen, rejected, ref_chosen, ref_rejected, n_chosen=1, n_rejected=1):
    values = (chosen, rejected, ref_chosen, ref_rejected, n_chosen, n_rejected)
    return PairScores(*(torch.tensor([float(v)], dtype=torch.float64) for v in values))


def expected(name, values, *, beta, e=0.0):
    """Scalar formulas of the papers, which share nothing with the code under test."""
    c, r, rc, rr, nc, nr = values
    h = (c - rc) - (r - rr)
    h_norm = (c - rc) / nc - (r - rr) / nr

    def softplus(x):
        return math.log1p(math.exp(x))

    return {
        "sigmoid": softplus(-beta * h),
        "sigmoid_norm": softplus(-beta * h_norm),
        "hinge": max(0.0, 1 - beta * h),
        "ipo": (h_norm - 1 / (2 * beta)) ** 2,
        "robust": ((1 - e) * softplus(-beta * h) - e * softplus(beta * h)) / (1 - 2 * e),
        "sft": -c / nc,
    }[name]


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("beta", [0.05, 0.5])
@pytest.mark.parametrize("values", [(-3, -9, -4, -7, 4, 6), (-12, -2, -10, -5, 9, 2)])
def test_each_loss_is_its_equation(name, beta, values):
    smoothing = 0.2 if name == "robust" else 0.0
    loss = preference_loss(scores(*values), beta=beta, loss_type=[name], label_smoothing=smoothing)
    assert loss.item() == pytest.approx(expected(name, values, beta=beta, e=smoothing), rel=1e-12)


def test_a_sum_of_losses_is_weighted():
    values = (-3, -9, -4, -7, 4, 6)
    loss = preference_loss(
        scores(*values), beta=0.1, loss_type=["sigmoid", "sft"], loss_weights=[1.0, 0.5]
    )
    by_hand = expected("sigmoid", values, beta=0.1) + 0.5 * expected("sft", values, beta=0.1)
    assert loss.item() == pytest.approx(by_hand, rel=1e-12)


def test_a_policy_equal_to_its_reference_starts_at_log_two():
    assert preference_loss(scores(-5, -8, -5, -8), beta=0.1).item() == pytest.approx(math.log(2))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"loss_type": ["kto"]}, "kto is not offered"),
        ({"loss_type": ["sigmoid"], "loss_weights": [1.0, 2.0]}, "1 loss types"),
        ({"loss_type": ["robust"], "label_smoothing": 0.5}, "0, 0.5"),
        ({"loss_type": ["ipo"], "label_smoothing": 0.1}, "robust only"),
    ],
)
def test_what_could_not_take_effect_is_refused_by_name(options, words):
    with pytest.raises(UserError, match=words):
        check_loss(DpoStage(trl=options))


PAIR = {
    "prompt_ids": list(range(10, 30)),
    "chosen_ids": list(range(40, 52)),
    "chosen_scored": [True] * 12,
    "rejected_ids": list(range(60, 67)),
    "rejected_scored": [True] * 7,
}


def two_sequence_loss(model, reference, pair, beta):
    """DPO as the paper's authors compute it: four full sequences, each on its own."""

    def log_prob(network, completion):
        tokens = torch.tensor([[*pair["prompt_ids"], *completion]])
        logits = network(input_ids=tokens).logits[:, :-1]
        picked = selective_log_softmax(logits, tokens[:, 1:])
        return picked[0, len(pair["prompt_ids"]) - 1 :].sum()

    with torch.no_grad():
        ref = log_prob(reference, pair["chosen_ids"]) - log_prob(reference, pair["rejected_ids"])
    policy = log_prob(model, pair["chosen_ids"]) - log_prob(model, pair["rejected_ids"])
    return -torch.nn.functional.logsigmoid(beta * (policy - ref))


def test_shared_prefix_loss_and_gradients_equal_two_sequences_in_float64():
    model = enable_scoring(make_tiny_model(seed=1).double())
    reference = enable_scoring(make_tiny_model(seed=2).double())
    gradients = []

    two_sequence_loss(model, reference, PAIR, 0.3).backward()
    gradients.append([p.grad.clone() for p in model.parameters()])
    oracle = two_sequence_loss(model, reference, PAIR, 0.3).item()

    model.zero_grad()
    batch = pack([pair_document(PAIR)], row_length=64)
    sums = [sequence_sums(log_probs(m, batch).double(), batch) for m in (model, reference)]
    (c, r), (rc, rr) = sums[0], sums[1].detach()
    one = torch.ones(1, dtype=torch.float64)
    loss = preference_loss(PairScores(c[None], r[None], rc[None], rr[None], one, one), beta=0.3)
    loss.sum().backward()
    gradients.append([p.grad.clone() for p in model.parameters()])

    assert loss.item() == pytest.approx(oracle, rel=1e-6)  # log-sum-exp is float32 by design
    for expected_grad, got in zip(*gradients, strict=True):
        torch.testing.assert_close(got, expected_grad, rtol=1e-5, atol=1e-7)
