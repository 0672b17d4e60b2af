"""Presets: one YAML file plus overrides, typed and validated.

keys: Generate the page of all preset keys from the sections.
preset: Load a preset: one YAML file plus dotted overrides, typed, with all mistakes reported at
    once.
restricted_keys: Preset keys that the chain sets itself, ignores, or accepts from the command
    line only.
safe_yaml: Read YAML from untrusted files: plain data only, with limits on size, depth and
    aliases.
secrets: Detect passwords and API keys: refused in presets, masked in messages.
sections: Sections of a preset as dataclasses; the docstring of each field documents its key.
validation: Check the rules between a preset's values that types cannot express.
"""
