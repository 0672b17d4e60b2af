"""What computes answers and log-probabilities: transformers or vLLM.

base: The interface of a model that scores and continues token ids, on any engine.
loading: Load a model with the backend that the preset names.
sampling: Sample answers to conversations from a model on disk, to build preference pairs.
transformers_backend: The default backend: a model of transformers in this process.
vllm_backend: The vLLM backend, in a separate process and usually a separate Python.
vllm_worker: The vLLM process, which `eval.backends.vllm_backend` starts as a script.
"""
