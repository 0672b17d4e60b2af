"""Preference pairs, the reference log-probs, the DPO loss and trainer.

Imports sft first: it sets environment variables that libraries read when they are imported.
"""

from sft import SILENT as SILENT
