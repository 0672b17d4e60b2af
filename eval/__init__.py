"""Measurement: engine, repetition, benchmarks, statistics, report. Imports sft, never dpo."""
