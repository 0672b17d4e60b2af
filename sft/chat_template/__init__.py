"""Chats to token ids by the chat template, with an exact assistant mask.

assistant_mask: Finds the assistant turns to train from the chat template itself, not from its
    family.
encoding: Encodes chats to token ids with the tokens to train, and prompts for generation.
message_forms: Converts messages to the form that a chat template takes: tool-call arguments and
    thinking.
render: Renders a conversation with the tokenizer's chat template.
rendering_checks: Checks that a chat template renders every message of a conversation.
system_prompt: Sets the system prompt of conversations without a system turn: the template's, a
    text, or none.
template: Chooses the chat template: the tokenizer's, the user's, or a default one.
template_date: Fixes the date that a chat template writes (Llama 3.2, gpt-oss, SmolLM3) for a
    whole run.
tokenizer_coverage: Measures the text that a tokenizer cannot represent: unknown, byte and lost
    tokens.
turn_end: Finds how a chat template ends an assistant turn, and the control tokens of a
    tokenizer.
"""
