"""The base package: rows, chats, token rows, models, runs and the SFT trainer.

It imports none of the other packages. Every command imports it first, so it disables the usage
statistics of all libraries and handles Ctrl-C before any library is loaded.
"""

import os
import signal

SILENT = {
    "HF_HUB_DISABLE_TELEMETRY": "1",  # transformers, trl, peft, gradio's client
    "DO_NOT_TRACK": "1",  # other libraries that respect it (vllm, gradio)
    "HF_UPDATE_DOWNLOAD_COUNTS": "0",  # datasets
    "WANDB_ERROR_REPORTING": "false",  # wandb, which also sends usage in offline mode
    "DISABLE_SAFETENSORS_CONVERSION": "1",  # transformers asks a service to convert a repository
}
for _name, _value in SILENT.items():
    os.environ.setdefault(_name, _value)
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")


def end_on_interrupt() -> None:
    """Make Ctrl-C end this process at once and without a traceback, as SIGTERM and SIGHUP do.

    Each command calls it first: imports take seconds, and `sft.run.command.run_command` handles
    signals only after them. An ignored SIGINT stays ignored.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
