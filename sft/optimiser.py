"""Whether a stage's optimiser is installed, asked before anything is paid."""

from transformers import Trainer, TrainingArguments
from transformers.training_args import OptimizerNames

from sft.config import UserError


def check_optimiser(args: TrainingArguments, *, stage: str) -> None:
    """Refuse an optimiser that upstream would look for when training begins.

    Raises:
        UserError: it is not installed.
    """
    try:
        Trainer.get_optimizer_cls_and_kwargs(args)
    except ImportError as error:
        name, reason = OptimizerNames(args.optim).value, str(error).rstrip(".")
        raise UserError(
            f"{stage}.optim={name} is not installed here ({reason}); remove {stage}.optim for "
            "AdamW, which runs on every device"
        ) from None
    except ValueError:
        pass  # some can be made with their model alone
