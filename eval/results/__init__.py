"""Models compared, gates decided and model cards written.

imported: What was measured before, here or by lm-eval itself, as a model to compare: no model
    is loaded.
imported_checks: Whether the files of lm-eval hold values of the types that lm-eval writes.
model_card: The model card of an export: results, how it was made, from what, under which
    licenses.
results: The table of all models of a run: measures joined, compared in pairs, written and
    reported.
same_format: The same-format comparison: what of a change is the model's, and what the
    question's form.
stage_gate: `enabled: auto`: run a stage where it is needed, and keep its model unless a score
    falls.
"""
