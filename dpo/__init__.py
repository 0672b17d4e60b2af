"""Preferences: rows, pairs from own samples, the loss, its reference, the DPO trainer.

Imports sft.
"""
