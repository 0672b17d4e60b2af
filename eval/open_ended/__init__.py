"""Open-ended answers judged by a model: MT-Bench, AlignBench or a file.

judge_endpoint: Client of a chat model at an OpenAI-compatible endpoint, with time limits and
    retries.
judge_prompts: Open-ended answers judged by a model: grades from 1 to 10, or which of two
    answers is better.
judgments: Judgments, stored one by one so that none is paid for twice, and the tables made of
    them.
questions: Open-ended questions and a model's answers to them: MT-Bench, AlignBench, or any
    file.
tables: Tables of open-ended judging for a terminal: grades by category, comparisons, the cost.
"""
