"""Trial of the options of optimizer, schedule, checkpointing and data loader.

transformers reads them when training begins, after the base model is measured; here a layer of one
weight tries them before.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from accelerate.utils import DynamoBackend
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments, get_scheduler
from transformers.training_args import OptimizerNames

from sft.errors import UserError

STEPS = 10  # of the trial of a schedule
# Optimizers that take the model itself; for them only the installation is checked.
_MODEL_OPTIMIZERS = ("galore", "apollo", "lomo", "adalomo")
_ERRORS = (
    *(ValueError, TypeError, KeyError, AttributeError, ArithmeticError, IndexError, RuntimeError),
)


def check_options(
    args: TrainingArguments, schedule: functools.partial[Any] | None, *, stage: str
) -> None:
    """Check the options that would otherwise fail when training begins.

    Args:
        schedule: one of `sft.training.lr_schedules`; None: one of transformers'.
        stage: the section of the preset.

    Raises:
        UserError: the optimizer is not installed, or the named options do not work.
    """
    layer = torch.nn.Linear(1, 1)
    trials: dict[str, Callable[[], object]] = {
        "log_level and log_level_replica": args.get_process_log_level,
        "torch_compile_*": lambda: _try_compiler(args, layer),
        "optim, optim_args, adam_* and weight_decay": lambda: _try_optimizer(args, layer, stage),
        "lr_scheduler_type, lr_scheduler_kwargs and warmup_steps": lambda: _try_schedule(
            args, schedule, layer
        ),
        "activation_checkpointing_kwargs": lambda: _try_checkpointing(args, layer),
        "dataloader_*": lambda: _try_loader(args),
    }
    for options, trial in trials.items():
        try:
            trial()
        except UserError:
            raise
        except _ERRORS as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise UserError(
                f"{stage}: {options} cannot be used as they are given ({reason}); correct them, or "
                "remove them from the preset"
            ) from None


def _try_compiler(args: TrainingArguments, layer: torch.nn.Module) -> None:
    if args.torch_compile:
        backend = str(args.torch_compile_backend)
        DynamoBackend(backend.upper())
        torch.compile(layer, backend=backend, mode=args.torch_compile_mode)


def _try_optimizer(args: TrainingArguments, layer: torch.nn.Module, stage: str) -> None:
    name = OptimizerNames(args.optim).value
    try:
        kind, options = Trainer.get_optimizer_cls_and_kwargs(args)
        kind(layer.parameters(), **{"weight_decay": args.weight_decay} | options)
    except ImportError as error:
        reason = str(error).rstrip(".")
        raise UserError(
            f"{stage}.optim={name} is not installed here ({reason}); remove {stage}.optim for "
            "AdamW, which runs on every device"
        ) from None
    except ValueError:
        if not name.startswith(_MODEL_OPTIMIZERS):
            raise


def _try_schedule(
    args: TrainingArguments, schedule: functools.partial[Any] | None, layer: torch.nn.Module
) -> None:
    warmup = args.get_warmup_steps(STEPS)
    optimizer = torch.optim.SGD(layer.parameters(), lr=args.learning_rate)
    if schedule is not None:
        for step in range(STEPS):
            float(schedule(step, total_steps=STEPS, warmup_steps=warmup))
        return
    given: Any = args.lr_scheduler_kwargs or {}
    get_scheduler(
        args.lr_scheduler_type,
        optimizer=optimizer,
        num_warmup_steps=warmup,
        num_training_steps=STEPS,
        scheduler_specific_kwargs=dict(given),
    )


def _try_checkpointing(args: TrainingArguments, layer: torch.nn.Module) -> None:
    given = args.activation_checkpointing_kwargs
    if given is None:
        return
    if not isinstance(given, dict):
        raise TypeError(f"{given!r} is no mapping")
    options: dict[str, Any] = {"use_reentrant": True} | given
    checkpoint(layer, torch.zeros(1, 1, requires_grad=True), **options)


def _try_loader(args: TrainingArguments) -> None:
    # Only iterating starts the worker processes.
    DataLoader(
        [0],  # type: ignore[arg-type]
        num_workers=args.dataloader_num_workers,
        prefetch_factor=args.dataloader_prefetch_factor,
        persistent_workers=args.dataloader_persistent_workers,
        multiprocessing_context=args.dataloader_multiprocessing_context,
    )
