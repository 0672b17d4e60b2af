"""Preferences: rows, pairs from own samples, the loss, reference log-probs, the DPO trainer. Imports sft."""
