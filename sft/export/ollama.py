"""Converts a chat template to an Ollama Modelfile: Go text instead of Jinja, the same tokens.

Ollama reads no Jinja. Most chat templates put each content between two fixed texts, which are all
that a Go template needs. They are found with sentinels and verified against the Jinja template.

Sources: Ollama's docs/modelfile.mdx (syntax) and convert/tokenizer.go (its tokenizer adds BOS
unless tokenizer_config.json has add_bos_token: false).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from sft.chat_template.render import Message, render
from sft.chat_template.turn_end import find_turn_end
from sft.errors import UserError

# Private-use characters, for which no template searches.
SYSTEM, FIRST, ANSWER, SECOND = "\ue004", "\ue005", "\ue006", "\ue007"
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class TurnFormat:
    """The fixed texts of a chat template; `around` has the texts before and after a content."""

    bos: str
    default: str  # written before a conversation without a system turn
    around: dict[str, tuple[str, str]]  # by role; no "system" if the template refuses one
    prompt: str  # the generation prompt


def find_turn_format(tokenizer: PreTrainedTokenizerBase) -> TurnFormat:
    """Return the fixed texts of the tokenizer's template, verified on several conversations.

    Raises UserError if the template moves, joins or rewrites turns.
    """
    try:
        turns = _find(tokenizer)
    except ValueError:  # the template drops or repeats a text, or raises for a role
        turns = None
    if turns is None or any(
        write(turns, chat) != render(tokenizer, chat, prompt=True)
        for chat in probe_chats(system="system" in turns.around)
    ):
        raise UserError(
            "this chat template is not a fixed text around each turn, so it cannot be written in "
            "Ollama's template language; serve the model with its own template instead "
            "(llama-server --jinja, vllm, transformers serve)"
        )
    return turns


def probe_chats(*, system: bool) -> list[list[Message]]:
    """Return conversations of one to five turns in two scripts, half with a system turn."""
    question = {"role": "user", "content": "What is 6*7?\nIn words, please: 六乘七？"}
    answer = {"role": "assistant", "content": "Forty-two.\n\n四十二。"}
    thanks = {"role": "user", "content": "Thanks!"}
    chats = [[question], [question, answer, thanks], [question, answer, thanks, answer, question]]
    instructed = [[{"role": "system", "content": "Be brief."}, *chat] for chat in chats]
    return chats + instructed if system else chats


def write(turns: TurnFormat, messages: Sequence[Message]) -> str:
    """Return the prompt as the Go template of `modelfile` writes it, with BOS."""
    written = [turns.bos]
    if messages[0]["role"] != "system":
        written.append(turns.default)
    for message in messages:
        before, after = turns.around[message["role"]]
        written += [before, message["content"], after]
    return "".join([*written, turns.prompt])


def modelfile(
    turns: TurnFormat,
    *,
    stops: Sequence[str],
    window: int | None,
    adds_bos: bool,
    day: str | None = None,
) -> str:
    """Return the text of an Ollama Modelfile for the safetensors in its folder.

    `stops` are the texts that end an answer, `window` is the context length, `day` a date in the
    fixed texts. Raises UserError if the template contains syntax of Go's template language.
    """
    parts = [turns.bos, turns.default, turns.prompt, *sum(turns.around.values(), ())]
    if any(mark in text for text in parts for mark in ("{{", '"""')):
        raise UserError('the chat template writes {{ or """, which an Ollama Modelfile cannot hold')
    cases = "{{ else ".join(
        f'if eq .Role "{role}" }}}}{before}{{{{ .Content }}}}{after}'
        for role, (before, after) in turns.around.items()
    )
    default = f"{{{{ if not .System }}}}{turns.default}{{{{ end }}}}" if turns.default else ""
    template = (
        ("" if adds_bos else turns.bos)
        + default
        + f"{{{{ range .Messages }}}}{{{{ {cases}{{{{ end }}}}{{{{ end }}}}"
        # Inside an action: Ollama trims a line break at the end of the template.
        + f"{{{{ if .Messages }}}}{turns.prompt}{{{{ end }}}}"
    )
    note = f"# The chat template writes the date of each day. Below it is always {day} (run.date)."
    lines = [note] if day else []
    lines += ["FROM .", f'TEMPLATE """{template}"""']
    lines += [f'PARAMETER stop "{stop}"' for stop in stops]
    lines += [f"PARAMETER num_ctx {window}"] if window else []
    # Greedy decoding, as in the evaluation.
    return "\n".join([*lines, "PARAMETER temperature 0", ""])


def _find(tokenizer: PreTrainedTokenizerBase) -> TurnFormat | None:
    user, answer = {"role": "user", "content": FIRST}, {"role": "assistant", "content": ANSWER}
    second = {"role": "user", "content": SECOND}
    three = render(tokenizer, [user, answer, second], prompt=True)
    front, to_answer, between, prompt = _split(three, FIRST, ANSWER, SECOND)
    answered = render(tokenizer, [user, answer], prompt=False)
    closing = find_turn_end(tokenizer).closing
    if render(tokenizer, [user, answer], prompt=True).startswith(answered + closing):
        answered += closing  # otherwise `closing` is the next turn's role token
    after_answer = answered.partition(ANSWER)[2]
    if not between.startswith(after_answer):
        after_answer = ""
    before_user = between.removeprefix(after_answer)
    after_user = render(tokenizer, [user], prompt=False).partition(FIRST)[2]
    if not (to_answer.startswith(after_user) and prompt.startswith(after_user)):
        after_user = ""
    around = {
        "user": (before_user, after_user),
        "assistant": (to_answer.removeprefix(after_user), after_answer),
    }
    if not front.endswith(before_user):
        return None
    head = front.removesuffix(before_user)
    bos = tokenizer.bos_token or ""
    bos = bos if head.startswith(bos) else ""
    try:
        system = {"role": "system", "content": SYSTEM}
        given = render(tokenizer, [system, user], prompt=True)
        before, after, _ = _split(given, SYSTEM, FIRST)
        around["system"] = (before.removeprefix(bos), after.removesuffix(before_user))
    except ValueError:
        pass  # the template takes no system turn
    ordered = {role: around[role] for role in ROLES if role in around}
    return TurnFormat(bos, head.removeprefix(bos), ordered, prompt.removeprefix(after_user))


def _split(text: str, *marks: str) -> list[str]:
    """Return the pieces of `text` around `marks`, each of which occurs once, in order."""
    pieces = []
    for mark in marks:
        before, found, text = text.partition(mark)
        if not found:
            raise ValueError(f"{mark!r} is missing")
        pieces.append(before)
    if any(mark in text for mark in marks):
        raise ValueError("a content occurs twice")
    return [*pieces, text]
