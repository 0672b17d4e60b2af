"""Trained models for others: merged weights, Ollama, equal token ids.

merge: A trained model as one whole model on disk, and what its logits lost on the way.
ollama: A chat template as Ollama's: Go text instead of Jinja, the same tokens in the end.
stage_weights: Write the weights of a finished stage for others, with notes on what its chat
    template adds.
token_parity: Write the tokenizer and the Ollama Modelfile of an export, and check the token
    ids.
"""
