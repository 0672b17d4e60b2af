"""Write the README of an adapter's folder: its base, and code that loads it with its eos ids."""

from pathlib import Path

import yaml

from sft.run.adapters import CONFIG, adapter_base, is_dora
from sft.run.revisions import split_revision
from sft.system.atomic_files import read_json, write_text

CARD = """\
---
{metadata}---

# {kind} adapter over {base}{revision}

Rank {rank}, trained with truing. The adapter needs its base model, whose own generation settings do
not name the end of a turn, so give the model those of this folder:

```python
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer, GenerationConfig

folder = "."  # where this file is
model = AutoPeftModelForCausalLM.from_pretrained(folder)
model.generation_config = GenerationConfig.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
```

Programs that load whole models (`transformers serve`, Ollama, MLX, llama.cpp) need it merged:
`python recipes/export.py RUN --to DIR` in a checkout of truing, where RUN is the run's folder.
"""


def write_adapter_card(folder: Path) -> None:
    """Write README.md over the template of PEFT's `save_pretrained`."""
    config = read_json(folder / CONFIG)
    base, revision = split_revision(adapter_base(folder))
    local = Path(base).is_dir()
    kind = "DoRA" if is_dora(folder) else "LoRA"
    metadata = {
        "base_model": None if local else base,
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["truing", kind.lower()],
    }
    present = {key: value for key, value in metadata.items() if value is not None}
    card = CARD.format(
        metadata=yaml.safe_dump(present, sort_keys=False),
        kind=kind,
        base=f"the base in adapter_config.json ({Path(base).name})" if local else base,
        revision=f" at revision {revision}" if revision else "",
        rank=config["r"],
    )
    write_text(folder / "README.md", card)
