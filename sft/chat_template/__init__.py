"""Chats to token ids by the chat template, with an exact assistant mask.

assistant_mask: Where the assistant speaks: turns found from the chat template itself, never
    from its family.
encoding: Chats to token ids: the template, what is trained, and what generation starts and
    stops on.
message_forms: Messages in the forms that a chat template takes: arguments of tool calls, and
    thinking.
render: A conversation as the tokenizer's chat template writes it.
rendering_checks: Whether a chat template shows what a conversation says.
system_prompt: The system prompt of conversations without a system turn: the template's, a text,
    or none.
template: The chat template: the tokenizer's own, the user's, or ours where there is none.
template_date: One date for all renderings of a chat template that writes today's (Llama 3.2,
    gpt-oss, SmolLM3).
tokenizer_coverage: Text that a tokenizer cannot write: unknown tokens, byte tokens, and
    characters that are lost.
turn_end: How a chat template ends an assistant turn, and which tokens control a chat.
"""
