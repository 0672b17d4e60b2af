"""Presets: one YAML file plus overrides, typed and validated.

preset: Presets: one YAML file plus dotted overrides becomes typed sections, or all its mistakes
    at once.
safe_yaml: YAML from anyone: plain data, and no larger when it is unfolded than when it is read.
secrets: Passwords and keys: refused where they would be written down, blotted out where they
    are said.
sections: The sections of a preset: every key of ours with its default, and which of trl's are
    not open.
validation: Rules between a preset's values that their types do not hold; each broken one is a
    sentence.
"""
