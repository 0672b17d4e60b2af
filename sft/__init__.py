"""The base layer: rows, chats, token rows, models, runs and the SFT trainer.

It imports nothing of ours. Everything else imports it, so what must hold before any library of the
field is loaded stands here: nothing is sent that nobody asked for, and Ctrl-C is no traceback.
"""

import os
import signal

SILENT = {
    "HF_HUB_DISABLE_TELEMETRY": "1",  # transformers, trl, peft, gradio's client
    "DO_NOT_TRACK": "1",  # whatever else heeds it (vllm, gradio)
    "HF_UPDATE_DOWNLOAD_COUNTS": "0",  # datasets
    "WANDB_ERROR_REPORTING": "false",  # wandb, which would send usage from its offline mode too
    "DISABLE_SAFETENSORS_CONVERSION": "1",  # transformers asks a service to convert a repository
}
for _name, _value in SILENT.items():
    os.environ.setdefault(_name, _value)
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")


def end_on_interrupt() -> None:
    """Have Ctrl-C end this process at once, without a word, as SIGTERM and SIGHUP do by themselves.

    Each command calls it first: its libraries take seconds to import, and
    `sft.run.command.run_command` handles signals only after that. Where SIGINT is ignored, it stays
    ignored.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
