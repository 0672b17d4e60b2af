"""lm-eval tasks over a backend, from the hub or from local files.

answer_length: Where an answer ends that a model writes to a task's question: tokens and stop
    strings.
benchmark: One benchmark of one model through lm-eval: a score with its interval, every sample
    on disk.
fewshot: Fewer few-shot examples where a question with all of them does not fit the model's
    window.
lm_eval_model: lm-eval's model interface over a backend that scores and continues token ids.
local_task: Tasks over data files of one's own, read as they are: no conversion, no cache, no
    import of code.
questions: What the tasks ask, so that no training row holds it.
sample_rows: From a sample of lm-eval to a stored row: one verdict a document, and what it rests
    on.
system_prompt: Chat templates without a system turn: a task's description goes to the head of
    the user's.
task_files: Benchmark tasks by name: from YAML files of one's own, or lm-eval's.
"""
