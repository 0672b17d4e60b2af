"""The process that holds vLLM: `eval.backends.vllm_backend` starts this file as a script of its
own.

It runs on the Python of the environment that has vLLM, which need not have anything of ours. Orders
come as lines of JSON on standard input, replies go the same way on what was standard output; vLLM's
own words go to standard error. When standard input ends, so does the process, whatever it is at:
nothing is left on the GPU of a run that was stopped or killed.
"""

import json
import math
import os
import queue
import sys
import threading
from typing import Any


def main() -> None:
    """Load the model of the first order, reply with its window, then do as ordered."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    # The folder of this file is no place to import from.
    sys.path[:] = [path for path in sys.path if path != os.path.dirname(__file__)]
    orders: queue.Queue[dict[str, Any]] = queue.Queue()
    threading.Thread(target=_listen, args=(orders,), daemon=True).start()
    from vllm import LLM

    llm = LLM(**orders.get()["load"])
    reply: Any = llm.model_config.max_model_len
    while True:
        replies.write(json.dumps(reply) + "\n")
        replies.flush()
        order = orders.get()
        reply = _scored(llm, order["score"]) if "score" in order else _written(llm, order["write"])


def _listen(orders: queue.Queue[dict[str, Any]]) -> None:
    for line in sys.stdin:
        orders.put(json.loads(line))
    os._exit(0)


def _written(llm: Any, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Token ids after each row's, decoded as its `params` (of SamplingParams) say."""
    from vllm import SamplingParams, TokensPrompt

    outputs = llm.generate(
        [TokensPrompt(prompt_token_ids=row["ids"]) for row in rows],
        [SamplingParams(**row["params"]) for row in rows],
        use_tqdm=False,
    )
    answers = [output.outputs[0] for output in outputs]
    return [{"ids": list(a.token_ids), "finish_reason": a.finish_reason} for a in answers]


def _scored(llm: Any, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the tokens from place `start` on get, each given those before it: the sum of their
    log-probabilities, and how many first ones are the likeliest of all."""
    from vllm import SamplingParams, TokensPrompt

    outputs = llm.generate(
        [TokensPrompt(prompt_token_ids=row["ids"]) for row in rows],
        # A token has to be written; nothing reads it.
        SamplingParams(
            max_tokens=1, temperature=0.0, prompt_logprobs=1, detokenize=False, ignore_eos=True
        ),
        use_tqdm=False,
    )
    found = []
    for row, output in zip(rows, outputs, strict=True):
        ids, start = row["ids"], row["start"]
        # The token's own entry and the likeliest one's, which is one where they are the same.
        entries = [output.prompt_logprobs[place] for place in range(start, len(ids))]
        total = math.fsum(e[i].logprob for i, e in zip(ids[start:], entries, strict=True))
        hits = [len(entry) == 1 for entry in entries]
        found.append({"log_prob": total, "agreed": [*hits, False].index(False)})
    return found


if __name__ == "__main__":
    main()
