"""A network of no known family in parts that are named: stages of convolutions, or blocks with attention.

The network runs as it is. To take up its pass in the middle, the parts up to there are replaced for that moment by
stand-ins that hand on what is given; so whatever its own code does between the parts is done.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from audit.errors import ModelError


class _ReachedError(Exception):
    """Ends a pass at the part that is asked for."""

    def __init__(self, entering: torch.Tensor) -> None:
        super().__init__()
        self.entering = entering


class _Given(nn.Module):
    """Stands in for a part: hands on a value whatever it is given."""

    def __init__(self, value: torch.Tensor | None) -> None:
        super().__init__()
        self.value = value

    def forward(self, entering: torch.Tensor, *_args: object, **_options: object) -> torch.Tensor:
        """Return the value."""
        return entering if self.value is None else self.value


class _End(nn.Module):
    """Stands in for a part, and ends the pass there."""

    def forward(self, entering: torch.Tensor, *_args: object, **_options: object) -> torch.Tensor:
        """Hand what entered to whoever asked."""
        raise _ReachedError(entering)


class NamedNetwork(nn.Module):
    """A network and the names of its parts, in the order in which they run.

    Parameters
    ----------
    network : torch.nn.Module
        In evaluation mode.
    parts : sequence of str
        Names of modules, each of which runs once and hands on all that the rest of the pass depends on.
    classifier : str or None
        Name of the linear layer that gives the logits; by default the last one that runs.
    input_size : tuple of int
        Channels, rows and columns of an image.

    Raises
    ------
    ModelError
        If a part is missing, does not run once, or is gone around by what follows.
    """

    def __init__(
        self, network: nn.Module, parts: Sequence[str], *, classifier: str | None, input_size: tuple[int, int, int]
    ) -> None:
        super().__init__()
        self.entry, self.network, self.exit = nn.Identity(), network, nn.Identity()
        self.parts, self.order = tuple(parts), ", ".join(parts)
        self.pretrained_cfg: dict[str, Any] = {"input_size": input_size}
        for name in self.parts:
            _part(network, name)
        self.leaving, self.ran = self._first_pass()
        self.classifier_name = classifier or self._last_linear()
        if not isinstance(_part(network, self.classifier_name), nn.Linear):
            raise ModelError(self.classifier_name, "gives the logits, and is no Linear", "name the one that does")
        self._check_order()
        self._check_logits()

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Let parts be looked up by name, as those of timm's models are."""

    @property
    def num_classes(self) -> int:
        """Outputs of the classifier."""
        return int(self.network.get_submodule(self.classifier_name).out_features)  # type: ignore[arg-type]

    def get_classifier(self) -> nn.Module:
        """Return the linear layer that gives the logits."""
        return self.network.get_submodule(self.classifier_name)

    def reset_classifier(self, num_classes: int) -> None:
        """Give it a new classifier."""
        old: Any = self.get_classifier()
        put_part(self.network, self.classifier_name, nn.Linear(old.in_features, num_classes, old.bias is not None))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits (B, classes)."""
        logits: torch.Tensor = self.exit(self.network(self.entry(images)))
        return logits

    def entering(self, images: torch.Tensor) -> torch.Tensor:
        """Return what enters the first part."""
        return self._ended(self.entry(images), {self.parts[0]: _End()})

    def between(self, part: int, leaving: torch.Tensor) -> torch.Tensor:
        """Return what enters the part after ``part``, of what leaves it."""
        return self._ended(self._blank(leaving), {**self._given(part, leaving), self.parts[part + 1]: _End()})

    def logits(self, leaving: torch.Tensor) -> torch.Tensor:
        """Return the logits of what leaves the last part."""
        with self._replaced(self._given(len(self.parts) - 1, leaving)):
            logits: torch.Tensor = self(self._blank(leaving))
        return logits

    def around(self, part: int, entering: torch.Tensor, inner: str, value: torch.Tensor) -> torch.Tensor:
        """Return what leaves a part, where a module inside it puts out ``value``."""
        name = f"{self.parts[part]}.{inner}"
        with self._replaced({name: _Given(value)}):
            leaving: torch.Tensor = self.network.get_submodule(self.parts[part])(entering)
        return leaving

    def segment(self, number: int) -> list[str]:
        """Return the modules with weights that run once part ``number`` has begun, before the next does.

        Segment -1 is before all parts, ``len(parts)`` after the last.
        """
        return [name for name, at in self.ran.items() if at == number]

    def _given(self, part: int, leaving: torch.Tensor) -> dict[str, nn.Module]:
        """Return the stand-ins of the parts up to one: what they hand on is not looked at, but for the last."""
        parts: dict[str, nn.Module] = {}
        for number, name in enumerate(self.parts[: part + 1]):
            blank = leaving.new_zeros(()).expand(len(leaving), *self.leaving[number])
            parts[name] = _Given(leaving if number == part else blank)
        return parts

    def _blank(self, leaving: torch.Tensor) -> torch.Tensor:
        return leaving.new_zeros((len(leaving), *self.pretrained_cfg["input_size"]))

    def _ended(self, images: torch.Tensor, stand_ins: Mapping[str, nn.Module]) -> torch.Tensor:
        """Run until a stand-in ends the pass; return what entered it."""
        with self._replaced(stand_ins):
            try:
                self.network(images)
            except _ReachedError as reached:
                return reached.entering
        raise ModelError(self.parts[0], "was not reached in a pass", "name parts that every pass runs")

    @contextmanager
    def _replaced(self, stand_ins: Mapping[str, nn.Module]) -> Iterator[None]:
        """Put stand-ins where parts are, for the length of a block."""
        own = {name: self.network.get_submodule(name) for name in stand_ins}
        try:
            for name, stand_in in stand_ins.items():
                put_part(self.network, name, stand_in)
            yield
        finally:
            for name, module in own.items():
                put_part(self.network, name, module)

    @torch.no_grad()
    def _check_logits(self) -> None:
        """Refuse a network that gives probabilities: read as logits, they would be made probabilities a second time."""
        seen: list[torch.Tensor] = []
        classifier = self.network.get_submodule(self.classifier_name)
        handle = classifier.register_forward_hook(lambda _module, _args, out: seen.append(out.detach()))
        try:
            size: tuple[int, ...] = self.pretrained_cfg["input_size"]
            images = torch.randn(2, *size, generator=torch.Generator().manual_seed(0))
            with torch.inference_mode():
                given = self(images.to(next(classifier.parameters())))
        finally:
            handle.remove()
        logits = seen[-1]
        if given.shape != logits.shape or torch.allclose(given, logits):
            return
        for output, read in (("sigmoid", logits.sigmoid()), ("softmax", logits.softmax(-1))):
            if torch.allclose(given, read):
                what = f"what it gives goes through a {output} before it leaves the network: it gives no logits"
                raise ModelError(self.classifier_name, what, f"give all but the {output}, with output='{output}'")

    def _first_pass(self) -> tuple[list[tuple[int, ...]], dict[str, int]]:
        """Return the shape of what leaves each part, of one image, and in which segment modules with weights run."""
        begun, finished = -1, 0
        shapes: dict[str, tuple[int, ...]] = {}
        ran: dict[str, int] = {}
        handles: list[RemovableHandle] = []
        calls = dict.fromkeys(self.parts, 0)

        def begins(name: str) -> Any:
            def hook(_module: nn.Module, args: tuple[object, ...], options: dict[str, object]) -> None:
                nonlocal begun
                if len([a for a in (*args, *options.values()) if isinstance(a, torch.Tensor)]) != 1:
                    raise ModelError(name, "takes more than one tensor", "name a part that takes the stream alone")
                calls[name] += 1
                begun = self.parts.index(name)

            return hook

        def ends(name: str) -> Any:
            def hook(_module: nn.Module, _args: object, out: object) -> None:
                nonlocal finished
                if not isinstance(out, torch.Tensor):
                    raise ModelError(name, f"hands on a {type(out).__name__}", "name a part that hands on a tensor")
                shapes[name] = tuple(out.shape[1:])
                finished = self.parts.index(name) + 1

            return hook

        def runs(name: str) -> Any:
            def hook(_module: nn.Module, _args: object) -> None:
                ran.setdefault(name, begun if finished < len(self.parts) else len(self.parts))

            return hook

        for name in self.parts:
            part = self.network.get_submodule(name)
            handles += [part.register_forward_pre_hook(begins(name), with_kwargs=True)]
            handles += [part.register_forward_hook(ends(name))]
        for name, module in self.network.named_modules():
            if any(True for _ in module.parameters(recurse=False)) and name:
                handles += [module.register_forward_pre_hook(runs(name))]
        try:
            self.network(torch.zeros(1, *self.pretrained_cfg["input_size"]))
        finally:
            for handle in handles:
                handle.remove()
        if list(shapes) != [name for name in self.parts if name in shapes]:
            raise ModelError(", ".join(shapes), "run in this order", "name parts in the order in which they run")
        if wrong := next((name for name, count in calls.items() if count != 1), None):
            raise ModelError(wrong, f"runs {calls[wrong]} times in a pass", "name parts that run once")
        return [shapes[name] for name in self.parts], ran

    def _last_linear(self) -> str:
        last = [
            name for name in self.segment(len(self.parts)) if isinstance(self.network.get_submodule(name), nn.Linear)
        ]
        if not last:
            raise ModelError(self.parts[-1], "is followed by no Linear that gives the logits", "name it: classifier")
        return last[-1]

    @torch.no_grad()
    def _check_order(self) -> None:
        """Raise where what follows a part depends on more than what leaves it."""
        generator = torch.Generator().manual_seed(0)
        images, other = (torch.randn(2, *self.pretrained_cfg["input_size"], generator=generator) for _ in range(2))
        left: dict[int, torch.Tensor] = {}
        stream = self.entering(images)
        for number, name in enumerate(self.parts):
            left[number] = stream = self.network.get_submodule(name)(stream)
            try:
                if number + 1 < len(self.parts):
                    stream = self.between(number, left[number])
                else:
                    stream = self.logits(left[number])
            except (RuntimeError, ModelError, ValueError, TypeError):
                what = "cannot be taken up after it"
                raise ModelError(name, what, "name parts in the order in which they run") from None
        if not torch.equal(stream, self(images)) or torch.equal(stream, self(other)):
            what = "what follows a part depends on more than what the part hands on"
            raise ModelError(", ".join(self.parts), what, "name parts that nothing goes around")


def _part(network: nn.Module, name: str) -> nn.Module:
    """Return a module by name; raise ``ModelError`` where there is none."""
    try:
        return network.get_submodule(name)
    except AttributeError:
        raise ModelError(name, f"a {type(network).__name__} has no such part", "see its named_modules()") from None


LEADING = (nn.Flatten, nn.Dropout, nn.Dropout2d)  # modules that belong to the convolution or linear layer after them


def grouped(network: nn.Module) -> tuple[nn.Sequential, list[str]] | None:
    """Group the modules of a row into stages, each of one convolution or linear layer with what follows it.

    Returns
    -------
    tuple of torch.nn.Sequential and list of str, or None
        The same modules in groups, and the names of all groups but the last, which gives the logits. None where the
        network is no row of modules, or has convolutions of which some are inside modules of another kind.
    """
    row = _row(network)
    makes = [i for i, module in enumerate(row) if isinstance(module, nn.Conv2d | nn.Linear)]
    inside = any(isinstance(m, nn.Conv2d | nn.Linear) for module in row for m in list(module.modules())[1:])
    if len(makes) < 2 or inside or not isinstance(row[makes[-1]], nn.Linear):
        return None
    starts = [0]
    for last, place in pairwise(makes):
        while place - 1 > last and (isinstance(row[place - 1], LEADING) or "Pad" in type(row[place - 1]).__name__):
            place -= 1
        starts.append(place)
    ends = [*starts[1:], len(row)]
    stages = {f"stage{i}": nn.Sequential(*row[a:b]) for i, (a, b) in enumerate(zip(starts, ends, strict=True))}
    return nn.Sequential(OrderedDict(stages)), list(stages)[:-1]


def _row(network: nn.Module) -> list[nn.Module]:
    """Return the modules of nested rows, in order."""
    if type(network) is not nn.Sequential:
        return [network]
    return [module for child in network for module in _row(child)]


class PlainNetwork(NamedNetwork):
    """A network without residual stream: what is patched are slices of the channels that a stage hands on."""


class AdaptedNetwork(NamedNetwork):
    """A transformer of no known family: blocks in order, and in each a projection that heads write through.

    Parameters
    ----------
    network : torch.nn.Module
    parts : sequence of str
        The blocks.
    projection : str
        Name, within a block, of the linear layer that all heads of the block write through.
    heads : int
        Of each block.
    inner : sequence of str
        Names, within a block, of the linear layers of queries, keys and values; or of the one that holds all three.
    """

    def __init__(
        self,
        network: nn.Module,
        parts: Sequence[str],
        *,
        projection: str,
        heads: int,
        inner: Sequence[str],
        classifier: str | None,
        input_size: tuple[int, int, int],
    ) -> None:
        super().__init__(network, parts, classifier=classifier, input_size=input_size)
        self.projection, self.heads, self.inner = projection, heads, tuple(inner)
        self.rows: list[tuple[int, ...]] = []  # that enter each projection, of one image
        self.shapes = [self._shapes(number) for number in range(len(self.parts))]

    @torch.no_grad()
    def _shapes(self, number: int) -> tuple[tuple[int, ...], int]:
        """Return the shape of one image of what enters a block, and how many rows enter its projection."""
        block = self.parts[number]
        linear: list[Any] = [_part(self.network, f"{block}.{name}") for name in (self.projection, *self.inner)]
        for name, module in zip((self.projection, *self.inner), linear, strict=True):
            if not isinstance(module, nn.Linear):
                raise ModelError(f"{block}.{name}", f"is a {type(module).__name__}, no Linear", "name a Linear")
        width = linear[0].in_features
        if self.heads < 1 or width % self.heads:
            raise ModelError(f"{block}.{self.projection}", f"reads {width} channels", f"{self.heads} heads do not fit")
        rows = sum(int(m.out_features) for m in linear[1:])
        if len(self.inner) not in (1, 3) or rows != 3 * width:
            what = f"make {rows} channels, not three times the {width} of its heads"
            raise ModelError(f"{block}: {', '.join(self.inner)}", what, "name queries, keys and values")
        seen: list[tuple[int, ...]] = []
        handles = [
            self.network.get_submodule(block).register_forward_pre_hook(lambda _m, args: seen.append(args[0].shape)),
            linear[0].register_forward_pre_hook(lambda _m, args: seen.append(args[0].shape)),
        ]
        try:
            self.network(torch.zeros(1, *self.pretrained_cfg["input_size"]))
        finally:
            for handle in handles:
                handle.remove()
        if len(seen) != 2:
            what = f"runs {len(seen) - 1} times in a pass of its block, as a module"
            raise ModelError(f"{block}.{self.projection}", what, "name a Linear that is called once")
        self.rows.append(tuple(seen[1][:-1]))
        return tuple(seen[0][1:]), prod(seen[1][:-1])


def put_part(network: nn.Module, name: str, part: nn.Module) -> None:
    """Put a module where a name, such as "features.0.conv", leads (torch has a method for it since 2.5)."""
    parent, _, own = name.rpartition(".")
    setattr(network.get_submodule(parent), own, part)
