"""Measurement: engine, repetition, benchmarks, statistics, report. Imports sft, never dpo.

sft comes first, before any library: see there.
"""

from sft import SILENT as SILENT
