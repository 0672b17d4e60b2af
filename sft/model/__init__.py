"""Models: found, checked, loaded, placed, given an adapter and saved.

adapter_card: README of an adapter's folder: its base, and the code that loads it so that
    answers end.
adapter_checks: Check on the meta device that an adapter can be trained or loaded over its base.
adapter_settings: Check the settings of a given adapter before PEFT reads them.
architecture: Which models can be trained here: decoders with a head over the vocabulary; and
    their shapes.
chat_models: Whether a model is a chat model: it stops where its own chat template ends a turn.
cpu_linear: Linear layers over the few rows of decoding, on AMD processors in float32.
experts: Experts of a model: which of its parameters are theirs, and what share of them a token
    visits.
flops: Parameters and floating-point operations of a causal LM: what training must compute.
fused_lora: LoRA's two passes with as few operations over activations as there are.
generation_settings: Generation settings of a model, made such that transformers saves them
    again.
loading: Models and their tokenizers: found, checked, loaded, given an adapter, saved.
lora_targets: Choose the matrices that a LoRA adapter is added to, stacked experts and routers
    included.
model_config: A model's configuration, without what its file could choose for us: code, kernels,
    files.
model_files: Check the files of an untrusted model before a library reads them.
placement: Where and how a model runs: device, dtype and attention, each with its reason.
quantization: Frozen weights in 4 bits (QLoRA): where they train, and how they are read.
tokenizer_child: The process that tries a tokenizer: `sft.model.model_files` starts this file as
    a script of its own.
vocabulary: Tokens that a chat template needs and the base lacks: added, and trained under LoRA
    too.
weight_files: Find, check and read the safetensors files of a model or an adapter.
"""
