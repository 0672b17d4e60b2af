"""Memory, FLOPs and hours of a run, known before it starts.

budget: What a run will take: memory, operations and hours of each stage, from its real rows.
budget_table: A run's budget: shown as a table, a column a stage, and held against the memory
    there is.
device_memory: What of a model's weights lies on each device, in training steps and outside of
    them.
devices: The devices that a plan is made for: this machine's, or those of a table.
highlight: An encoded chat as text in which the trained tokens stand out, by color or by
    brackets.
preview: Shows the first row of each kind as it is trained, for `recipes/preview.py`.
stages: What each stage is about to do, counted from its real rows before anything is paid for.
step_memory: The memory that a step, or a forward pass, takes, by part, from one that computes
    nothing.
"""
