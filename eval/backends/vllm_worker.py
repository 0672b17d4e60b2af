"""The vLLM process, which `eval.backends.vllm_backend` starts as a script.

It runs in the environment that has vLLM and imports nothing of this project. Requests are lines of
JSON on standard input, replies lines of JSON on the original standard output; output of vLLM goes
to standard error. The process exits as soon as standard input ends, so that a run that is stopped
or killed leaves nothing on the GPU.
"""

import json
import math
import os
import queue
import sys
import threading
from typing import Any


def main() -> None:
    """Load the model of the first request, reply with its window, then serve requests."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    # Python puts the folder of a script first on the path; its modules must not shadow others.
    sys.path[:] = [path for path in sys.path if path != os.path.dirname(__file__)]
    requests: queue.Queue[dict[str, Any]] = queue.Queue()
    threading.Thread(target=_listen, args=(requests,), daemon=True).start()
    from vllm import LLM

    llm = LLM(**requests.get()["load"])
    reply: Any = llm.model_config.max_model_len
    while True:
        replies.write(json.dumps(reply) + "\n")
        replies.flush()
        request = requests.get()
        reply = (
            _scored(llm, request["score"])
            if "score" in request
            else _written(llm, request["write"])
        )


def _listen(requests: queue.Queue[dict[str, Any]]) -> None:
    for line in sys.stdin:
        requests.put(json.loads(line))
    os._exit(0)


def _written(llm: Any, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Decode after the token ids of each row with its `params` of SamplingParams."""
    from vllm import SamplingParams, TokensPrompt

    outputs = llm.generate(
        [TokensPrompt(prompt_token_ids=row["ids"]) for row in rows],
        [SamplingParams(**row["params"]) for row in rows],
        use_tqdm=False,
    )
    answers = [output.outputs[0] for output in outputs]
    return [{"ids": list(a.token_ids), "finish_reason": a.finish_reason} for a in answers]


def _scored(llm: Any, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Score the tokens from index `start` on: log-probability and matches of greedy decoding."""
    from vllm import SamplingParams, TokensPrompt

    outputs = llm.generate(
        [TokensPrompt(prompt_token_ids=row["ids"]) for row in rows],
        # vLLM generates at least one token; it is not used.
        SamplingParams(
            max_tokens=1, temperature=0.0, prompt_logprobs=1, detokenize=False, ignore_eos=True
        ),
        use_tqdm=False,
    )
    found = []
    for row, output in zip(rows, outputs, strict=True):
        ids, start = row["ids"], row["start"]
        # An entry holds the token itself and the likeliest token: one key if they are the same.
        entries = [output.prompt_logprobs[place] for place in range(start, len(ids))]
        total = math.fsum(e[i].logprob for i, e in zip(ids[start:], entries, strict=True))
        hits = [len(entry) == 1 for entry in entries]
        found.append({"log_prob": total, "agreed": [*hits, False].index(False)})
    return found


if __name__ == "__main__":
    main()
