"""Memory, FLOPs and hours of a run, known before it starts.

budget: Memory, operations and hours of each stage of a run, from its real rows.
budget_table: Show the budget of a run as a table with a column per stage, and check it against
    the memory.
device_memory: Memory of a model's weights on each device, in training steps and outside of
    them.
devices: Devices that a plan is made for: those of this machine, or a known model.
mask_display: Show an encoded chat as text with its trained tokens marked, by color or by
    brackets.
preview: Print the first row of each kind as it is trained, for `recipes/preview.py`.
stages: Check and count the rows of each SFT stage before anything is trained.
step_memory: Memory of a training step or a forward pass, by part, from a run on fake tensors.
"""
