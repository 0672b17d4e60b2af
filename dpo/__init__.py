"""Preferences: rows, pairs from own samples, the loss, its reference, the DPO trainer.

Imports sft, and that before any library: see there.
"""

from sft import SILENT as SILENT
