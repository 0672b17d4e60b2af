"""Runs of the chain on the tiny world, in this process, and what they leave on disk."""

from safetensors.torch import load_file

from recipes.sft_then_dpo import main

MODELS = ["base", "sft-all", "sft-dialogue", "dpo"]
STAGES = ["1-sft-all", "2-sft-dialogue", "3-dpo"]


def run(world, *arguments):
    return main([str(world / "preset.yaml"), *arguments])


def weights(world, stage):
    return load_file(world / "run" / stage / "model" / "model.safetensors")


def times(folder):
    """When each file below a folder was last written."""
    return {
        str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()
    }
