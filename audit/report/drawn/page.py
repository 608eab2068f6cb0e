"""The pictures of the core pages, as the templates ask for them."""

from __future__ import annotations

from audit.records import Audit
from audit.report.drawn import controls, errors, examples, power, seeds, training
from audit.report.drawn.base import Picture
from audit.report.text import Sentences


class CorePictures:
    """Pictures of one audit; each is None where what it shows is not in the record."""

    audit: Audit
    text: Sentences

    def errors_picture(self, attribute: str, outcome: str) -> Picture | None:
        """Draw how often each known group is missed, and how often it gets a false alarm, with the policy's zone."""
        return errors.picture(self.audit, self.text, attribute, outcome)

    def training_picture(self, attribute: str) -> Picture | None:
        """Draw how many training images of each group have each label."""
        return training.picture(self.audit, self.text, attribute)

    def power_picture(self) -> Picture | None:
        """Draw the smallest gap that each comparison could have seen, beside the policy's."""
        return power.picture(self.audit, self.text)

    def seeds_picture(self, attribute: str, outcome: str) -> Picture | None:
        """Draw the gaps of this run's model beside those of the same model trained with other seeds."""
        return seeds.picture(self.audit, self.text, attribute, outcome)

    def controls_picture(self) -> Picture | None:
        """Draw the controls: effects and nulls with their thresholds, and how many of the other checks passed."""
        return controls.picture(self.audit, self.text)

    def control_examples(self) -> list[Picture]:
        """Draw rendered images of the controls beside themselves without colour or detail; [] where they were real."""
        return examples.of_audit(self.audit, self.text)
