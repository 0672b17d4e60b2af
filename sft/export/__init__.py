"""Trained models for others: merged weights, Ollama, equal token ids.

merge: Merges a trained model into one full model on disk, and measures the change of its
    logits.
ollama: Converts a chat template to an Ollama Modelfile: Go text instead of Jinja, the same
    tokens.
stage_weights: Writes the weights of a finished stage for publication, with notes on its chat
    template.
token_parity: Writes tokenizer and Ollama Modelfile of an export, and checks that token ids are
    equal.
"""
