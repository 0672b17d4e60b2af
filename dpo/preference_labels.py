"""The better of two answers by a label, a preference, a winner or annotators' votes."""

from collections import Counter
from typing import Any

from sft.config.sections import Source
from sft.data.fields import Fields
from sft.data.json_values import number_of
from sft.data.records import RowError, wrong_type
from sft.errors import UserError

TIE, FIRST, SECOND = 0, 1, 2
# Fields with their own values for the better of two answers.
VERDICTS: dict[str, dict[Any, int]] = {
    "winner": {  # LMSYS arena, MT-Bench
        "model_a": FIRST,
        "model_b": SECOND,
        **dict.fromkeys(("tie", "tie (bothbad)"), TIE),
    },
    "better_response_id": {0: FIRST, 1: SECOND},  # PKU-SafeRLHF
    "labels": {1: FIRST, 0: SECOND},  # SHP: whether the first is preferred
}
MEANINGS = {"first": FIRST, "second": SECOND, "tie": TIE}  # of a source's `labels`
RANGE = "a number from 1 to 2, or mean what the source's labels={VALUE: first, VALUE: second} say"
# Fields in the order in which they are tried, before the votes of annotators.
NAMES = ("label", "preference", *VERDICTS, "preference_strength")


class Verdicts:
    """Reader of the verdicts of a source's rows.

    `label` and `preference` count from 1 (1: the first answer, 2: the second; label 0: a tie).
    Numbers that begin with 0 and never reach 2 are ambiguous and rejected, unless the source's
    `labels` define them.
    """

    def __init__(self, source: Source) -> None:
        self.path, self.labels = source.path, source.labels
        self._numbers: dict[str, set[float]] = {}
        self._from_zero = False  # whether the names of the answers count from 0

    def read(self, fields: Fields, origin: str) -> int:
        """Return FIRST, SECOND or TIE by the row's first field of NAMES, or the majority of votes.

        Raises:
            RowError: a value without a meaning, or no such field.
        """
        self._from_zero |= "response_0" in fields
        name = next((name for name in NAMES if name in fields), None)
        if self.labels and name is not None:
            return self._labeled(name, fields[name], origin)
        # Other data sets than SHP use `labels` as `label`, which counts from 1.
        if name == "labels" and "human_ref_A" not in fields:
            name = "label"
            fields = Fields({"label": fields["labels"]})
        if name in ("label", "preference") and (found := number_of(fields[name])) is not None:
            self._numbers.setdefault(name, set()).add(found)
        return _verdict(fields, origin)

    def _labeled(self, name: str, value: Any, origin: str) -> int:
        number = number_of(value)
        for label, meaning in self.labels.items():
            if str(label).lower() == str(value).lower() or (
                number is not None and number == number_of(label)
            ):
                return MEANINGS[meaning]
        wanted = f"one of {', '.join(map(str, self.labels))}, which the source's labels name"
        raise wrong_type(origin, f"{name} ({str(value)[:40]!r})", value, wanted)

    def refuse_from_zero(self) -> None:
        """Check the numbers after the last row.

        Raises:
            UserError: the numbers, or the names of the answers, begin with 0, and no number is 2,
                so that 1 may be either answer.
        """
        for name, numbers in self._numbers.items():
            if (0 in numbers or self._from_zero) and 2 not in numbers:
                shown = ", ".join(f"{number:g}" for number in sorted(numbers)[:4])
                raise UserError(
                    f"{self.path}: {name} is {shown} and never 2, and nothing says which of the "
                    "two answers a number names; say it in the source: labels={0: first, 1: "
                    "second} where they count from 0, labels={1: first, 0: second} where 1 means "
                    "that the first is better, or labels={1: first, 2: second, 0: tie}"
                )


def _verdict(fields: Fields, origin: str) -> int:
    """Return the verdict of a row; a strength (HelpSteer) below 0 prefers the first answer."""
    votes = [
        fields[name]
        for name in fields
        if name.startswith("annotator") and number_of(fields.peek(name)) is not None
    ]
    if "label" in fields:
        return _choice(fields["label"], origin, where="label")
    if "preference" in fields:
        value = number_of(fields["preference"])
        if value is None or not 1 <= value <= 2:
            raise wrong_type(origin, "preference", fields["preference"], RANGE)
        return TIE if value == 1.5 else FIRST if value < 1.5 else SECOND
    for name, choices in VERDICTS.items():
        if name in fields:
            value = fields[name]
            key = value if isinstance(value, str) and value in choices else number_of(value)
            if key not in choices:
                wanted = f"one of {', '.join(map(str, choices))}"
                raise wrong_type(origin, f"{name} ({str(value)[:40]!r})", value, wanted)
            return choices[key]
    if "preference_strength" in fields:
        given = fields["preference_strength"]
        strength = number_of(given)
        if strength is None:
            where = f"preference_strength ({str(given)[:40]!r})"
            raise wrong_type(origin, where, given, "a number")
        return TIE if strength == 0 else FIRST if strength < 0 else SECOND
    if votes:
        counted = Counter(_choice(vote, origin, where="an annotator's vote") for vote in votes)
        choice, most = counted.most_common(1)[0]
        return choice if 2 * most > len(votes) else TIE
    raise RowError(
        origin,
        rule="no verdict",
        detail="two outputs without a label, a preference or annotators' votes",
        remedy="add a label of 1, 2 or 0 (tie)",
    )


def _choice(value: Any, origin: str, *, where: str) -> int:
    number = number_of(value)
    if number not in (TIE, FIRST, SECOND):
        raise RowError(
            origin,
            rule="wrong type",
            detail=f"{where} is {str(value)[:40]!r}",
            remedy="it must be 1 (first is better), 2 (second) or 0 (tie), or mean what the "
            "source's labels={VALUE: first, VALUE: second} say",
        )
    return int(number)
