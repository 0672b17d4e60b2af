"""lm-eval tasks over a backend, from the hub or from local files.

answer_length: Limit generated answers of a task: number of tokens and stop strings.
benchmark: Run one lm-eval benchmark of one model: a score with its interval, every sample on
    disk.
chat_history: Render conversations with templates that have no system turn: it is merged into
    the user turn.
fewshot: Reduce few-shot examples if a question with all of them does not fit the context
    window.
lm_eval_model: Implement lm-eval's model interface on a backend that scores and continues token
    ids.
local_task: Define lm-eval tasks over local data files, without conversion, cache or import of
    code.
questions: Load the questions of all tasks, for decontamination of the training rows.
sample_rows: Convert a sample of lm-eval to a stored row: the score of a document and its
    evidence.
task_files: Find benchmark tasks by name: local YAML files, or tasks of lm-eval.
"""
