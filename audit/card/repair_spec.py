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

    # Which methods compete; by default all that need no group at prediction.
    methods: Annotated[list[RepairMethod], AfterValidator(_once), Field(min_length=1)] | None = None
    attribute: str | None = None  # whose gap is aimed at; default: that of the largest detected gap
    outcome: str | None = None  # likewise, the label
    # Which error does harm: people of the outcome who are not called so, others who are, or either.
    harmful_error: HarmfulError | None = None  # default: policy.harmful_error
    gap_margin: Margin = 0.05  # a repaired gap lies within it, on either side of 0
    accuracy_margin: Margin = 0.02  # that no group x label cell may lose
    error_margin: Margin = 0.02  # that no group's harmful error may rise by
    alpha: Annotated[float, Field(gt=0.0, lt=0.5)] = 0.05
    candidates: Annotated[int, Field(ge=1, le=20)] = 1  # how many are judged on sealed images; they share alpha
    random_draws: Annotated[int, Field(ge=1, le=10_000)] = 20  # sets of heads that the named ones are compared with
    # On what law a method that uses the group of each person rests; empty: these methods are off.
    legal_basis: str = ""
    seed: int = 0

    @property
    def competing(self) -> list[RepairMethod]:
        """The methods that compete: those named, or all that need no group at prediction."""
        return self.methods or [name for name in get_args(RepairMethod) if name not in NEED_GROUP]
