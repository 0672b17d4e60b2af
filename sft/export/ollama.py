"""A chat template as Ollama's: Go text instead of Jinja, the same tokens in the end.

Ollama reads no Jinja. Nearly every chat template is regular (each turn is its content between two
fixed texts), and then the fixed texts, found with sentinels, are all that a Go template needs. What
is found is compared with the Jinja template on conversations before it is used.

Sources: Ollama's docs/modelfile.mdx (syntax), convert/tokenizer.go (BOS is written by its tokenizer
unless tokenizer_config.json says add_bos_token: false).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sft.chat_template.render import Message, render
from sft.chat_template.turn_end import find_turn_end
from sft.errors import UserError

# Private-use characters, which no template looks for.
SYSTEM, FIRST, ANSWER, SECOND = "\ue004", "\ue005", "\ue006", "\ue007"
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class TurnFormat:
    """The fixed texts of a regular template; `around` is what stands before and after contents."""

    bos: str
    default: str  # written in front where a conversation has no system turn
    around: dict[str, tuple[str, str]]  # by role; no "system" where the template refuses one
    asks: str  # what asks for the next answer


def find_turn_format(tokenizer: Any) -> TurnFormat:
    """The fixed texts of the tokenizer's template, verified on conversations of several turns.

    A date that the template writes (Llama 3.2) becomes one of these texts, as the tokenizer's date.

    Raises:
        UserError: the template is not regular (it moves, joins or rewrites turns).
    """
    try:
        turns = _find(tokenizer)
    except ValueError:  # a sentinel is missing or stands twice; UserError: a role is refused
        turns = None
    if turns is None or any(
        write(turns, chat) != render(tokenizer, chat, prompt=True)
        for chat in probe_chats(system="system" in turns.around)
    ):
        raise UserError(
            "this chat template is not a fixed text around each turn, so it cannot be said in "
            "Ollama's template language; serve the model with its own template instead "
            "(llama-server --jinja, vllm, transformers serve)"
        )
    return turns


def probe_chats(*, system: bool) -> list[list[Message]]:
    """Conversations of one to five turns, in two scripts, half of them with a system turn."""
    question = {"role": "user", "content": "What is 6*7?\nIn words, please: 六乘七？"}
    answer = {"role": "assistant", "content": "Forty-two.\n\n四十二。"}
    thanks = {"role": "user", "content": "Thanks!"}
    chats = [[question], [question, answer, thanks], [question, answer, thanks, answer, question]]
    instructed = [[{"role": "system", "content": "Be brief."}, *chat] for chat in chats]
    return chats + instructed if system else chats


def write(turns: TurnFormat, messages: Sequence[Message]) -> str:
    """The prompt as the Go template of `modelfile` writes it, BOS included."""
    written = [turns.bos]
    if messages[0]["role"] != "system":
        written.append(turns.default)
    for message in messages:
        before, after = turns.around[message["role"]]
        written += [before, message["content"], after]
    return "".join([*written, turns.asks])


def modelfile(
    turns: TurnFormat,
    *,
    stops: Sequence[str],
    window: int | None,
    adds_bos: bool,
    day: str | None = None,
) -> str:
    """The text of an Ollama Modelfile that stands beside the safetensors.

    Args:
        stops: texts that end an answer.
        window: tokens of context, where the model's configuration says.
        adds_bos: the tokenizer itself puts BOS in front of a text.
        day: the date among the fixed texts, where the chat template writes one.

    Raises:
        UserError: the template holds what Go's template language reads as its own.
    """
    parts = [turns.bos, turns.default, turns.asks, *sum(turns.around.values(), ())]
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
        # Inside an action, so that a line break at the end of the prompt is kept.
        + f"{{{{ if .Messages }}}}{turns.asks}{{{{ end }}}}"
    )
    note = f"# The chat template writes the date of each day. Below it is always {day} (run.date)."
    lines = [note] if day else []
    lines += ["FROM .", f'TEMPLATE """{template}"""']
    lines += [f'PARAMETER stop "{stop}"' for stop in stops]
    lines += [f"PARAMETER num_ctx {window}"] if window else []
    # As the model was measured: greedy.
    return "\n".join([*lines, "PARAMETER temperature 0", ""])


def _find(tokenizer: Any) -> TurnFormat | None:
    user, answer = {"role": "user", "content": FIRST}, {"role": "assistant", "content": ANSWER}
    second = {"role": "user", "content": SECOND}
    front, to_answer, between, asks = _split(
        render(tokenizer, [user, answer, second], prompt=True), FIRST, ANSWER, SECOND
    )
    said = render(tokenizer, [user, answer], prompt=False)
    closing = find_turn_end(tokenizer).closing
    if render(tokenizer, [user, answer], prompt=True).startswith(said + closing):
        said += closing  # else it is the next turn's role token
    after_answer = said.partition(ANSWER)[2]
    if not between.startswith(after_answer):
        after_answer = ""
    before_user = between.removeprefix(after_answer)
    asked = render(tokenizer, [user], prompt=False).partition(FIRST)[2]
    after_user = asked if to_answer.startswith(asked) and asks.startswith(asked) else ""
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
    return TurnFormat(bos, head.removeprefix(bos), ordered, asks.removeprefix(after_user))


def _split(text: str, *marks: str) -> list[str]:
    """The pieces of `text` around `marks`, each of which stands in it once, in order."""
    pieces = []
    for mark in marks:
        before, found, text = text.partition(mark)
        if not found:
            raise ValueError(f"{mark!r} is missing")
        pieces.append(before)
    if any(mark in text for mark in marks):
        raise ValueError("a content stands twice")
    return [*pieces, text]
