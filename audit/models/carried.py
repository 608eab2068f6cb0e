"""What weights that an audit has saved carry of their preprocessing, in the metadata of their safetensors file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from audit.card.schema import CardPart, ModelSpec, PreprocessSpec
from audit.errors import ModelError
from audit.models.checkpoint import PREPROCESSING, stored_preprocessing


class Carried(CardPart):
    """How images were made for a model while it was trained or audited."""

    # "deployed" is timm's own, of ``config``; a callable cannot be made again
    preprocess: Literal["deployed", "legacy", "callable"] | PreprocessSpec
    # by which pixels between 0 and 1 are normalised
    mean: list[float]
    std: list[float]
    image_size: int | None = None  # side in pixels, where it is not what the name says
    config: dict[str, float | str] = Field(default_factory=dict)  # timm's settings of the evaluation transform

    @property
    def text(self) -> str:
        """What is stored."""
        return self.model_dump_json(exclude_defaults=True)

    def of_card(self, spec: ModelSpec) -> ModelSpec:
        """Return a card's model with what the card leaves open as the weights carry it."""
        update: dict[str, Any] = {k: getattr(self, k) for k in ("mean", "std", "image_size") if not getattr(spec, k)}
        return spec.model_copy(
            update=update | ({} if self.preprocess == "callable" else {"preprocess": self.preprocess})
        )


def read_carried(spec: ModelSpec, weights: Path | None) -> Carried | None:
    """Return what a file of weights carries, where the card asks for the preprocessing that is deployed.

    Raises
    ------
    ModelError
        If it cannot be read.
    """
    text = stored_preprocessing(weights) if spec.preprocess == "deployed" else None
    try:
        return None if text is None else Carried.model_validate_json(text)
    except ValidationError:
        what = f"its metadata {PREPROCESSING} is no preprocessing"
        raise ModelError(str(weights), what, "state model.preprocess, or restore the file") from None
