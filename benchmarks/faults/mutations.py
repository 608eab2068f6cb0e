"""Cards, tables, images and reviews that were damaged, or meant to do harm, through the command line."""

from __future__ import annotations

import hashlib
import json
import random
import signal
import struct
import tempfile
import traceback
import zlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import yaml
from click.testing import CliRunner
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from PIL import Image

from audit.cli import main
from audit.report.manifest import write_manifest
from audit.report.render import render_run
from tests.report.examples import examples

LIMIT = 10  # seconds
IMAGES = 24
GROUPS, LABELS = ("light", "dark"), ("calm", "glad", "sad")
CARD = {
    "name": "Mutated",
    "task": "emotion",
    "data": {"reader": "table", "path": "t.csv", "image": "file", "label": "label", "subject": "person"},
    "groups": {"tone": {"column": "tone", "assigned_by": "nobody", "reference": "light"}},
    "audit": {"min_group_size": 2},
}
ACCEPTED = {0, 2, 5}  # fine, bad input, could not finish


@dataclass
class Mutated:
    """What became of all inputs."""

    mutations: int = 0
    tracebacks: int = 0
    hangs: int = 0
    by_kind: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


class _HangError(BaseException):
    """Too long: no ``except Exception`` on the way may swallow it."""


def _ring(_number: int, _frame: FrameType | None) -> None:
    raise _HangError


def mutate(count: int, number: int) -> Mutated:
    """Try so many damaged inputs.

    Parameters
    ----------
    count : int
        In all: a quarter each of cards by bytes, cards by values, tables, images; and some reviews.
    number : int
        Seed.
    """
    found, draw = Mutated(), random.Random(number)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_data(folder, draw)
        fifth = count // 5
        for kind, damage in (("card, bytes", _damage_card), ("table", _damage_table), ("image", _damage_image)):
            for _ in range(fifth):
                with _damaged(damage(folder, draw)):
                    try_input(kind, ["check", str(folder / "card.yaml")], found)
        _by_value(folder, fifth, number, found)
        _reviews(folder, count - 4 * fifth, draw, found)
    return found


def write_data(folder: Path, draw: random.Random) -> None:
    """Write a card, a table and images that are all right."""
    rows = ["file,label,person,tone"]
    for number in range(IMAGES):
        name = f"{number}.{'png' if number % 2 else 'jpg'}"
        pixels = bytes(draw.randrange(256) for _ in range(12 * 12 * 3))
        Image.frombytes("RGB", (12, 12), pixels).save(folder / name)
        rows.append(f"{name},{LABELS[number % 3]},p{number},{GROUPS[number // 3 % 2]}")
    (folder / "t.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    (folder / "card.yaml").write_text(yaml.safe_dump(CARD, sort_keys=False), encoding="utf-8")


class _damaged:  # noqa: N801 - reads as a word
    """Hold a damaged file for the length of a block."""

    def __init__(self, change: tuple[Path, bytes]) -> None:
        self.path, self.content = change
        self.whole = self.path.read_bytes()

    def __enter__(self) -> None:
        self.path.write_bytes(self.content)

    def __exit__(self, *_: object) -> None:
        self.path.write_bytes(self.whole)


def bytes_changed(content: bytes, draw: random.Random) -> bytes:
    """Flip, drop, double, move or cut bytes, or put in some that mean something."""
    damaged = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 8))):
        at, length = draw.randrange(len(damaged) + 1), draw.choice((1, 1, 4, 40))
        kind = draw.randrange(6)
        if kind == 0 and at < len(damaged):
            damaged[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            del damaged[at : at + length]
        elif kind == 2:
            damaged[at:at] = damaged[at : at + length]
        elif kind == 3:
            damaged[at:at] = draw.choice(TOKENS)
        elif kind == 4:
            damaged[at:at] = bytes(draw.randrange(256) for _ in range(length))
        else:
            del damaged[at:]
    return bytes(damaged)


TOKENS = (
    b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\n\n", b"\r", b"\t", b"- ", b": ", b"{", b"[", b'"', b"'", b"&a ", b"*a",
    b"!!python/object/apply:os.system ['id']", b"!!binary ", b"<<: *a", b"../../../../etc/passwd", b"/dev/zero", b"~",
    b".inf", b"-.nan", b"1e999", b"9" * 400, b"0x", b",,,,", "\u202e\U0001f600".encode(), b"=cmd|' /C calc'!A0",
    b"${jndi:ldap://x}", b"{{ 7*7 }}", b"%PDF-1.7", b"\x1b[2J",
)  # fmt: skip


def _damage_card(folder: Path, draw: random.Random) -> tuple[Path, bytes]:
    path = folder / "card.yaml"
    if draw.random() < 0.05:
        return path, draw.choice(BOMBS)
    return path, bytes_changed(path.read_bytes(), draw)


BOMBS = (
    b"a: &a [x,x,x,x,x,x,x,x,x]\n"
    + b"".join(b"%c: &%c [%s]\n" % (i, i, b",".join([b"*%c" % (i - 1)] * 9)) for i in range(98, 107)),
    b"[" * 50_000,
    b"{a: " * 20_000,
    b"name: " + b"x" * 1_000_001,
    b"&a [*a]",
    b"? [a]\n: b\n",
    b"? &a {a: *a}\n: 1\n",
    b"name: !!python/object/apply:os.system [id]\n",
    b"---\n---\n",
    b"%YAML 9.9\n---\na: 1\n",
)  # fmt: skip


def _damage_table(folder: Path, draw: random.Random) -> tuple[Path, bytes]:
    path = folder / "t.csv"
    return path, bytes_changed(path.read_bytes(), draw)


def _damage_image(folder: Path, draw: random.Random) -> tuple[Path, bytes]:
    path = draw.choice(sorted([*folder.glob("*.png"), *folder.glob("*.jpg")]))
    if draw.random() < 0.1:
        return path, png_of(*draw.choice(((60_000, 60_000), (2**31 - 1, 1), (0, 5), (30_000, 30_000))))
    return path, bytes_changed(path.read_bytes(), draw)


def png_of(width: int, height: int) -> bytes:
    """Return a PNG that says it is so large, and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 999)) + chunk(b"IEND", b"")
    )


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30) | st.binary(max_size=9) | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
PLACES = [
    "name", "task", "data", "groups", "audit", "model", "training", "controls", "policy", "legal", "report",
    "match_on", "intersections", "new", "data.path", "data.image", "data.label", "data.labels", "data.subject",
    "data.shares", "data.reader", "data.plant", "data.links", "data.download", "data.split", "data.seed",
    "groups.tone", "groups.tone.column", "groups.tone.values", "groups.tone.reference", "groups.tone.pair",
    "model.name", "model.weights", "model.classes", "model.overrides", "model.image_size", "model.channel_slices",
    "model.mean", "model.train_blocks", "model.overrides.depth", "model.overrides.num_heads",
    "model.overrides.embed_dim", "model.overrides.patch_size", "model.overrides.global_pool",
    "model.overrides.init_values", "audit.outcomes", "audit.alpha",
]  # fmt: skip


def _by_value(folder: Path, count: int, number: int, found: Mutated) -> None:
    """Put values of every kind into the card, in every place."""
    path = folder / "card.yaml"
    whole = path.read_bytes()

    @seed(number)
    @settings(max_examples=count, database=None, deadline=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(st.sampled_from(PLACES), VALUES)
    def put(place: str, value: object) -> None:
        card = json.loads(json.dumps(CARD))
        *outer, last = place.split(".")
        inner = card
        for part in outer:
            inner = inner.setdefault(part, {})
        inner[last] = value
        path.write_text(
            yaml.safe_dump(card, sort_keys=False, allow_unicode=True), encoding="utf-8", errors="surrogatepass"
        )
        try_input("card, values", ["check", str(path)], found)

    put()
    path.write_bytes(whole)


def _reviews(folder: Path, count: int, draw: random.Random, found: Mutated) -> None:
    """Merge damaged reviews into a run."""
    run = folder / "run"
    run.mkdir()
    audit = examples()["single_layer"]
    (run / "audit.json").write_text(audit.model_dump_json(), encoding="utf-8")
    render_run(run)
    write_manifest(run)
    decision = {"finding": audit.findings[0].id, "decision": "accept", "name": "R.", "role": "c.", "reason": "seen",
                "decided": "2026-03-02T10:00:00Z"}  # fmt: skip
    own = hashlib.sha256((run / "audit.json").read_bytes()).hexdigest()
    path = folder / "review.json"
    for _ in range(count):
        whose = own if draw.random() < 0.1 else "0" * 64  # a review that is merged prints the whole report again
        whole = json.dumps({"audit_sha256": whose, "decisions": [decision]}, indent=1).encode()
        path.write_bytes(b"[" * 100_000 if draw.random() < 0.01 else bytes_changed(whole, draw))
        try_input("review", ["review", str(run), str(path)], found)


def try_input(kind: str, arguments: list[str], found: Mutated) -> None:
    """Call the command line; count what should never be."""
    before = signal.signal(signal.SIGALRM, _ring)
    signal.alarm(LIMIT)
    found.mutations += 1
    found.by_kind[kind] += 1
    try:
        result = CliRunner().invoke(main, arguments)
    except _HangError:
        found.hangs += 1
        found.faults.append(f"{kind}: over {LIMIT} s")
        return
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    if isinstance(result.exception, _HangError):
        found.hangs += 1
        found.faults.append(f"{kind}: over {LIMIT} s")
    elif result.exit_code not in ACCEPTED or "internal error" in result.output or "Traceback" in result.output:
        found.tracebacks += 1
        told = result.output.strip().splitlines()[-1:] or traceback.format_exception(result.exception)[-1:]
        found.faults.append(f"{kind}: exit {result.exit_code}: {told[0][:300]}")
    found.refused[kind] += result.exit_code == 2
