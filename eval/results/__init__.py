"""Models compared, gates decided and model cards written.

external_checks: Checks of lm-eval's files: types of values, names and links.
external_results: Import of measures of another run or of lm-eval's logs, as a model to compare.
model_card: Model card of an export: results, training, data and licenses.
results: Results of a run: the measures of all models, compared in pairs and written with a
    report.
same_format_comparison: Same-format comparison, which separates the change of a model from that
    of the format.
stage_gate: `enabled: auto`: run a stage where it is needed, and keep its model unless a score
    falls.
"""
