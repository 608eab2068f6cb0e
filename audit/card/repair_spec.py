"""What a card may say of a repair: methods, margins, and which error matters."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Margin = Annotated[float, Field(gt=0.0, lt=1.0)]
RepairMethod = Literal[
    "untouched",
    "continued",
    "global_threshold",
    "dfr",
    "oxonfair",
    "threshold_optimizer",
    "leace",
    "group_dro",
    "heads_to_reference",
    "heads_finetuned",
    "heads_shifted",
]
HarmfulError = Literal["missed", "false_alarm", "both"]
NEED_GROUP = ("threshold_optimizer",)  # methods that must be told the group of each image that is classified


def _once(methods: list[RepairMethod]) -> list[RepairMethod]:
    twice = sorted({name for name in methods if methods.count(name) > 1})
    if twice:
        raise ValueError(f"'{twice[0]}' occurs twice; name each once")
    return methods


class RepairSpec(BaseModel):
    """How a gap is repaired, and what the repaired model must keep; an audit does not depend on it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # which compete: `untouched`, `continued`, `global_threshold`, `dfr`, `oxonfair`, `threshold_optimizer`, `leace`,
    # `group_dro`, `heads_to_reference`, `heads_finetuned`, `heads_shifted`. Those at heads bring their control at
    # random heads along; default: all that need no group at prediction
    methods: Annotated[list[RepairMethod], AfterValidator(_once), Field(min_length=1)] | None = None
    # whose gap is aimed at; default: that of the largest detected gap
    attribute: str | None = None
    # the label that people are called; default: likewise
    outcome: str | None = None
    # which error does harm; as there; default: that of `policy`
    harmful_error: HarmfulError | None = None
    # a repaired gap lies within it, on either side of 0
    gap_margin: Margin = 0.05
    # accuracy that no group x label cell may lose
    accuracy_margin: Margin = 0.02
    # by which no group's harmful error may rise
    error_margin: Margin = 0.02
    # level of each line of the certificate; candidates share it
    alpha: Annotated[float, Field(gt=0.0, lt=0.5)] = 0.05
    # how many methods are judged on sealed images, those that do best on images that none was fitted on
    candidates: Annotated[int, Field(ge=1, le=20)] = 1
    # sets of heads drawn at random that the named ones are compared with
    random_draws: Annotated[int, Field(ge=1, le=10_000)] = 20
    # on what law a method that uses each person's group at prediction rests; without one `threshold_optimizer` is off
    legal_basis: str = ""
    # of draws, folds and trainings
    seed: int = 0

    @property
    def competing(self) -> list[RepairMethod]:
        """The methods that compete: those named, or all that need no group at prediction."""
        return self.methods or [name for name in get_args(RepairMethod) if name not in NEED_GROUP]
