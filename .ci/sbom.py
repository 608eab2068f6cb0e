"""Write a bill of materials of a release: the packages that it needs as they are installed here, in CycloneDX 1.6."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from os import environ
from pathlib import Path

from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import DisjunctiveLicense
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

NAME = "vit-audit"


def required(name: str, extras: frozenset[str]) -> Iterator[tuple[str, frozenset[str]]]:
    """Yield the packages that one needs on this machine, with the extras that it asks of each."""
    for line in distribution(name).requires or ():
        needed = Requirement(line)
        if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            yield canonicalize_name(needed.name), frozenset(needed.extras)


def graph(root: str, extras: frozenset[str]) -> dict[str, set[str]]:
    """Return by name what each package needs, from one down; a package that is not installed ends with a line."""
    needs: dict[str, set[str]] = {}
    asked: set[tuple[str, frozenset[str]]] = set()
    waiting = [(root, extras)]
    while waiting:
        name, wanted = waiting.pop()
        if (name, wanted) in asked:
            continue
        asked.add((name, wanted))
        try:
            below = list(required(name, wanted))
        except PackageNotFoundError:
            raise SystemExit(f"{name} is not installed; run 'make setup' first") from None
        needs.setdefault(name, set()).update(found for found, _ in below)
        waiting += below
    return needs


def component(name: str) -> Component:
    """Return what is known of an installed package: version, address in PyPI, licence as it states it."""
    held = distribution(name)
    kind = ComponentType.APPLICATION if name == NAME else ComponentType.LIBRARY
    return Component(
        name=name,
        version=held.version,
        type=kind,
        bom_ref=f"{name}=={held.version}",
        purl=PackageURL("pypi", None, name, held.version),
        licenses=[DisjunctiveLicense(name=text) for text in licence(held)],
    )


def licence(held: Distribution) -> list[str]:
    """Return the licence that a package states, in one line; nothing where it states none or prints its whole text."""
    told = held.metadata
    classified = [c.rpartition(" :: ")[2] for c in told.get_all("Classifier") or () if c.startswith("License ::")]
    for text in (told.get("License-Expression"), told.get("License"), ", ".join(classified)):
        if text and text.strip() and "\n" not in text.strip() and len(text) < 120:
            return [text.strip()]
    return []


def bill(extras: frozenset[str], settings: Mapping[str, str]) -> Bom:
    """Return the bill: this package as its subject, and all that it needs with what needs what."""
    needs = graph(NAME, extras)
    parts = {name: component(name) for name in sorted(needs)}
    made = settings.get("SOURCE_DATE_EPOCH")
    bom = Bom(components=[part for name, part in parts.items() if name != NAME])
    bom.metadata.component = parts[NAME]
    bom.metadata.timestamp = datetime.now(UTC) if made is None else datetime.fromtimestamp(int(made), UTC)
    for name, below in needs.items():
        bom.register_dependency(parts[name], [parts[one] for one in sorted(below)])
    bom.serial_number = uuid.uuid5(uuid.NAMESPACE_URL, " ".join(part.bom_ref.value or "" for part in parts.values()))
    return bom


def main(folder: str, *extras: str) -> None:
    """Write the bill to a folder; ``extras`` of the package are taken along."""
    bom = bill(frozenset(extras), environ)
    subject = bom.metadata.component
    assert subject is not None
    path = Path(folder) / f"{NAME}-{subject.version}.cdx.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(JsonV1Dot6(bom).output_as_string(indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(f"{path}: {len(bom.components)} packages\n")


if __name__ == "__main__":
    main(*(sys.argv[1:] or ["dist"]))
