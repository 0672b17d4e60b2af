"""Hub revisions: resolve branches and tags to commits, and keep a run on the commits it began with.

Within a run a model on the hub is written `org/name@commit`: its weights, configuration and
tokenizer come from one commit, and hashes of inputs contain that commit.
"""

import logging
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, RevisionNotFoundError

from sft.config.preset import find_path
from sft.config.sections import ModelSection, Preset, Source
from sft.data.readers import is_on_hub
from sft.errors import UserError
from sft.system.atomic_files import read_record
from sft.system.hub import reach_hub

log = logging.getLogger(__name__)

COMMIT = re.compile(r"[0-9a-f]{40}")
TIMEOUT = 30.0  # seconds for the hub to name a commit


def split_revision(path: str) -> tuple[str, str | None]:
    """Split `org/name@revision`; the revision is None for any other path or hub id."""
    name, at, revision = path.rpartition("@")
    if not at or not revision or Path(path).exists() or name.count("/") > 1:
        return path, None
    return name, revision


def with_revision(section: ModelSection) -> ModelSection:
    """Move the revision of a `name_or_path` like `org/name@revision` to the key `revision`.

    Raises:
        UserError: it names two revisions.
    """
    name, own = split_revision(section.name_or_path or "")
    if own is None:
        return section
    if section.revision not in (None, own):
        raise UserError(
            f"model.name_or_path={section.name_or_path} and model.revision={section.revision} name "
            "two revisions; give one"
        )
    return replace(section, name_or_path=name, revision=own)


def located(path: str) -> dict[str, Any]:
    """Return the keyword arguments of `from_pretrained` for a path or `org/name@revision`."""
    name, revision = split_revision(path)
    given: dict[str, Any] = {"pretrained_model_name_or_path": name}
    return given if revision is None else given | {"revision": revision}


def resolve_commit(name: str, *, revision: str | None, kind: str = "model") -> str | None:
    """Resolve a branch, a tag or an abbreviated commit of a hub repository to a commit.

    Without access to the hub, the cache of downloads is searched.

    Args:
        revision: None for the main branch.
        kind: model or dataset.

    Returns:
        40 hexadecimal digits; None where the repository is unknown, which loading it reports.

    Raises:
        UserError: the repository has no such revision.
    """
    if revision and COMMIT.fullmatch(revision):
        return revision
    if reach_hub() and not constants.HF_HUB_OFFLINE:
        try:
            return HfApi().repo_info(name, repo_type=kind, revision=revision, timeout=TIMEOUT).sha
        except RevisionNotFoundError:
            raise UserError(
                f"{name}: the hub has no revision {revision!r} of this {kind}; correct it, or "
                "leave it out for the main branch"
            ) from None
        except (HfHubHTTPError, OSError, ValueError) as error:
            log.debug("%s: no commit (%s)", name, error)
    file = "config.json" if kind == "model" else "README.md"
    try:
        found = try_to_load_from_cache(name, file, revision=revision, repo_type=kind)
    except ValueError:  # not the form of a hub id
        return None
    return Path(found).parent.name if isinstance(found, str) else None


def pin_revisions(preset: Preset, *, keep: bool) -> tuple[Preset, dict[str, str]]:
    """Replace the revisions of the model and the sources on the hub by commits.

    Args:
        keep: use the commits that the run in `run.dir` recorded, also where the branch or tag has
            moved since; a warning names both commits.

    Returns:
        The preset, and the commits by "KIND NAME@REVISION" for `write_run_record`.

    Raises:
        UserError: see `resolve_commit`.
    """
    record = read_record(Path(preset.run.dir).expanduser() / "run.json") if keep else None
    recorded = (record or {}).get("revisions")
    recorded = recorded if isinstance(recorded, dict) else {}
    commits: dict[str, str] = {}

    def commit_of(name: str, revision: str | None, kind: str) -> str | None:
        key = f"{kind} {name}@{revision or constants.DEFAULT_REVISION}"
        if key not in commits:
            now, before = resolve_commit(name, revision=revision, kind=kind), recorded.get(key)
            if before and now and now != before:
                log.warning(
                    "%s moved from commit %s to %s since the run began; the run continues with the "
                    "former (--rerun takes the latter)",
                    *(key, before[:12], now[:12]),
                )
            if (found := before or now) is None:
                return revision
            commits[key] = found
        return commits[key]

    def pinned(source: Source) -> Source:
        if not is_on_hub(source.path):
            return source
        return replace(source, revision=commit_of(source.path, source.revision, "dataset"))

    model = with_revision(preset.model)
    if model.name_or_path and is_hub_id(model.name_or_path):
        model = replace(model, revision=commit_of(model.name_or_path, model.revision, "model"))
    data = replace(
        preset.data,
        sft=[pinned(source) for source in preset.data.sft],
        preference=[pinned(source) for source in preset.data.preference],
    )
    pairs = replace(preset.pairs, prompts=[pinned(source) for source in preset.pairs.prompts])
    return replace(preset, model=model, data=data, pairs=pairs), commits


def is_hub_id(path: str) -> bool:
    """Return whether a path is not on this machine and has the form of a hub id."""
    local = path.startswith((".", "/", "~")) or path.count("/") > 1
    return not local and find_path(path) is None
