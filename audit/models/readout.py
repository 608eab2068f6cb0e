"""How a model's logits are read: as probabilities of its classes, and as what an image is called."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from audit.card.schema import Decision, ModelSpec, Output
from audit.models.adapters.registry import Model

EVEN = 0.5  # the threshold where none is named
PAIR = 2  # classes, one of which is what the other is not
READING = (
    "output",
    "decision",
    "threshold",
    "output_key",
    "prompts",
)  # fields of a card's model that its body does not need


@dataclass(frozen=True)
class Readout:
    """From logits to probabilities, log-odds and what an image is called."""

    output: Output = "softmax"  # whether classes exclude each other, or each logit is a question of its own
    # whether an image is called the class of the highest logit, or each class whose probability is high enough
    decision: Decision = "argmax"
    threshold: float | None = None  # how high, in (0, 1); None with argmax
    # whether the network has one output z, the log-odds of the second of two classes; its model here has the logits 0
    # and z, which a softmax reads as that sigmoid
    one_logit: bool = False

    @property
    def exclusive(self) -> bool:
        """Whether the probabilities of the classes sum to 1."""
        return self.output == "softmax" or self.one_logit

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the probability of each class for logits (..., classes)."""
        return logits.softmax(-1) if self.exclusive else logits.sigmoid()

    def log_odds(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the log-odds of each probability, in nats, for logits (..., classes)."""
        return class_log_odds(logits) if self.exclusive else logits

    def predicted(self, logits: torch.Tensor, probabilities: torch.Tensor | None = None) -> torch.Tensor:
        """Return one class number for each row of logits (N, classes).

        Of two classes that exclude each other a threshold is on the second: what does not reach it is the first. Else
        it is the class of the highest logit, whatever the threshold. Where ``probabilities`` are given, ``logits`` may
        be anything in the order of these.
        """
        if self.decision == "threshold" and self._is_pair(logits):
            return self._reached(logits, probabilities)[:, 1].long()
        return logits.argmax(-1)

    def called(self, logits: torch.Tensor, probabilities: torch.Tensor | None = None) -> torch.Tensor | None:
        """Return for logits (N, classes) which classes each row is called: several, or none.

        None where it is the predicted class and no other. ``probabilities`` are as in ``predicted``.
        """
        if self.decision == "argmax" or self._is_pair(logits):
            return None
        return self._reached(logits, probabilities)

    def margins(self, logits: torch.Tensor) -> torch.Tensor:
        """Return how far logits (N, classes) are from the decision of each class: above 0 where it is called so."""
        classes = logits.shape[-1]
        if self.decision == "argmax":
            of_class = ~torch.eye(classes, dtype=torch.bool, device=logits.device)
            others = logits.unsqueeze(-2).expand(*logits.shape, classes).masked_fill(~of_class, -torch.inf)
            return logits - others.amax(-1)
        return self.log_odds(logits) - logits.new_tensor([self.decision_at(k, classes) for k in range(classes)])

    def decision_at(self, place: int, classes: int) -> float:
        """Return the log-odds from which on an image is called the class at a place, in nats.

        With argmax 0, where no other class can have a higher probability.
        """
        if self.decision == "argmax" or self.threshold is None:
            return 0.0
        at = math.log(self.threshold / (1 - self.threshold))
        return -at if self.exclusive and classes == PAIR and place == 0 else at

    def _reached(self, logits: torch.Tensor, probabilities: torch.Tensor | None) -> torch.Tensor:
        found = self.probabilities(logits) if probabilities is None else probabilities
        return found >= (self.threshold or EVEN)

    def _is_pair(self, logits: torch.Tensor) -> bool:
        return self.exclusive and logits.shape[-1] == PAIR


SOFTMAX = Readout()


def class_log_odds(logits: torch.Tensor) -> torch.Tensor:
    """Return ``m_c = l_c - logsumexp over j != c of l_j`` for logits (..., classes); the log-odds of p_c, in nats."""
    n = logits.shape[-1]
    others = ~torch.eye(n, dtype=torch.bool, device=logits.device)
    rest = logits.unsqueeze(-2).expand(*logits.shape, n).masked_fill(~others, -torch.inf)
    return logits - torch.logsumexp(rest, dim=-1)


def readout_of_card(spec: ModelSpec, *, own: Output = "softmax", one_logit: bool = False) -> Readout:
    """Return how a card's model is read.

    Parameters
    ----------
    spec : ModelSpec
    own : {"softmax", "sigmoid"}
        What the checkpoint says of itself; the card comes first.
    one_logit : bool
        Whether the checkpoint has one output for two classes.
    """
    output = spec.output or own
    apart = output == "sigmoid" and spec.prompts is None  # texts compete: an image is called the one it fits best
    by_default: Decision = "threshold" if apart or spec.threshold is not None else "argmax"
    decision = spec.decision or by_default
    threshold = None if decision == "argmax" else spec.threshold or EVEN
    return Readout(output, decision, threshold, one_logit)


def with_readout(model: Model, readout: Readout) -> Model:
    """Say on a model, in place, how it is read, and return it."""
    model.readout = readout
    return model


def readout_of(model: Model) -> Readout:
    """Return how a model is read: by softmax and argmax, where nothing says otherwise."""
    found: Readout = getattr(model, "readout", SOFTMAX)
    return found
