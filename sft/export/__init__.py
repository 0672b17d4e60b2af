"""Trained models for others: merged weights, Ollama, equal token ids.

merge: Merges a trained adapter into its base, and writes the full model in one dtype.
merge_check: Compares the logits of an exported model with those of the trained one.
ollama: Converts a chat template to an Ollama Modelfile: Go text instead of Jinja, the same
    tokens.
stage_weights: Writes the weights of a finished stage for publication, with notes on its chat
    template.
token_parity: Writes tokenizer and Ollama Modelfile of an export, and checks that token ids are
    equal.
"""
