"""Models: found, checked, loaded, placed, given an adapter and saved.

adapter_card: Write the README of an adapter's folder: its base, and code that loads it with its
    eos ids.
adapter_checks: Check on the meta device that an adapter can be trained or loaded over its base.
adapter_settings: Check the settings of a given adapter before PEFT reads them.
architecture: Check that a configuration is a causal LM; read its shapes; build it on the meta
    device.
chat_models: Decide whether a model is a chat model: it stops where its chat template ends a
    turn.
cpu_linear: Compute linear layers over a few rows faster, on AMD processors in float32
    (decoding).
experts: Find the parameters of routed experts and the share of them that a token is multiplied
    with.
flops: Count parameters and floating-point operations (FLOPs) of a causal LM.
fused_lora: Fuse LoRA's forward and backward passes into fewer operations over activations.
generation_settings: Check and repair a model's generation settings, so that transformers can
    save them.
loading: Find, check, load and save models and their tokenizers.
lora_targets: Choose the matrices that a LoRA adapter is added to, stacked experts and routers
    included.
model_config: Read a model's configuration, without fields that choose code, kernels or weight
    files.
model_files: Check the files of an untrusted model before a library reads them.
placement: Choose the device, dtypes and attention of a model, and log the reason for each.
quantization: Check that 4-bit weights (QLoRA) can be trained over, and configure their
    quantization.
tokenizer_subprocess: Script that tries a tokenizer, which `sft.model.model_files` runs in a
    child process.
vocabulary: Add tokens that a chat template needs and the base lacks; under LoRA their rows are
    trained.
weight_files: Find, check and read the safetensors files of a model or an adapter.
"""
