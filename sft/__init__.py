"""The base layer: rows, chats, token rows, models, runs and the SFT trainer.

It imports nothing of ours. Everything else imports it, so what must hold before any library of the
field is loaded stands here: no usage statistics are sent.
"""

import os

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
