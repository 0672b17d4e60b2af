"""Build requests as lm-eval does, for a tiny model."""

from lm_eval.api.instance import Instance

QUESTIONS = [
    ("Question: what is the sea?\nAnswer:", [" water", " a road", " tea, hot"]),
    ("Question: what is a cat?\nAnswer:", [" water", " an animal that sleeps"]),
    ("Spaces before the choice   ", ["one", "two three"]),
    ("", ["no context at all", " none"]),
    ("同一个问题：", ["水", "一条路"]),
]


def instances(kind, arguments, *, task="t"):
    return [
        Instance(kind, doc={}, arguments=args, idx=i, metadata=(task, i, 1))
        for i, args in enumerate(arguments)
    ]


def choices(questions=QUESTIONS):
    pairs = [(context, choice) for context, options in questions for choice in options]
    return instances("loglikelihood", pairs)


def generation_requests(settings):
    contexts = [
        "Question: one?\nAnswer:",
        "A",
        "Write a list of many things to eat",
        "数一数",
        "Question: two and three?\nAnswer:",
    ]
    return instances("generate_until", [(context, dict(settings)) for context in contexts])
