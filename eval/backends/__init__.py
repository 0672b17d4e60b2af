"""What computes answers and log-probabilities: transformers or vLLM.

base: The interface of a model that scores and continues token ids, on any engine.
loading: A model loaded behind the backend that the preset names.
sampling: Answers to conversations from a model on disk: what pairs are built from.
transformers_backend: The backend that is always there: a model of transformers in this process.
vllm_backend: The backend of vLLM, in a process and usually in a Python of its own.
vllm_worker: The process that holds vLLM: `eval.backends.vllm_backend` starts this file as a
    script of its own.
"""
