"""What a stage's options need beside the packages of the project, asked before anything is paid."""

from transformers import Trainer, TrainingArguments
from transformers.integrations import integration_utils
from transformers.training_args import OptimizerNames

from sft.config import UserError

# Upstream's list of what is installed passes over it.
UNLISTED = "flyte"


def check_extras(args: TrainingArguments, *, stage: str) -> None:
    """Refuse an optimiser or a tracker that upstream would look for when training begins.

    Raises:
        UserError: it is not installed, or no tracker has that name.
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
    known = integration_utils.INTEGRATION_TO_CALLBACK
    installed = {*integration_utils.get_available_reporting_integrations(), UNLISTED}
    for name in args.report_to or ():
        if name not in known:
            raise UserError(
                f"{stage}.report_to={name} is no tracker; name one of {', '.join(known)}, or none"
            )
        if name not in installed:
            raise UserError(
                f"{stage}.report_to={name} is not installed here; pip install {name}, or set "
                f"{stage}.report_to=none"
            )
