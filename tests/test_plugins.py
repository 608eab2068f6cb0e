"""Packages that add readers, families, controls and exports: the template is used, and broken ones are named."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest

import vit_audit as va
from audit.card.schema import DataSpec
from audit.controls.added import run_added, versions_of_added
from audit.controls.identities import Subject
from audit.controls.verdict import judge_again, numbers_table
from audit.data.readers import read_raw
from audit.plugins import plugins
from audit.records import ControlReport
from audit.report.exports import exports
from audit.report.html import render_html
from audit.report.text import Sentences
from tests.models_for_tests import noise_images, tiny
from tests.report.examples import examples
from tests.small_world import Invoke, World, write_card

pytestmark = pytest.mark.unit
ROOT = Path(__file__).parents[1]
USED = """
import sys
from pathlib import Path
import pandas as pd, timm, torch
from PIL import Image
from safetensors.torch import save_file
import vit_audit as va

(Path("faces")).mkdir()
names = [f"{'no yes'.split()[i % 2]}_{'fm'[i // 2 % 2]}_{i}.png" for i in range(80)]
for name in names:
    Image.new("RGB", (16, 16)).save(Path("faces") / name)
pd.DataFrame({"image": names, "predicted": [n.split("_")[0] for n in names]}).to_csv("answers.csv", index=False)
card = {
    "name": "Pairs", "training": "none",
    "data": {"reader": "pairs", "path": "faces", "label": "label", "subject": "person"},
    "groups": {"gender": {"column": "group"}},
    "model": {"name": "predictions", "path": "answers.csv", "classes": ["no", "yes"]},
}
result = va.audit(va.plan(card), "run", report=True)
assert [row.images for row in result.record.rates if row.outcome == "yes"] == [40, 40]
assert result.record.data.source.reader == "pairs"
lines = Path("run/exports/gaps.txt").read_text().splitlines()
assert lines[0] == result.digest and len(lines) == 1 + len(result.record.contrasts)
assert result.verify().holds, result.verify().faults
assert "vit-audit-example" in Path("run/exports/printed-with.json").read_text()

assert "ViT with scaled patches" in set(va.supported_models()["family"])
small = {"depth": 1, "embed_dim": 24, "num_heads": 2}
network = timm.create_model("scaled_vit_tiny", img_size=32, num_classes=2, **small)
save_file(network.state_dict(), "scaled.safetensors")
net = va.load_model({
    "name": "scaled_vit_tiny", "weights": "scaled.safetensors", "classes": ["no", "yes"], "image_size": 32,
    "overrides": small, "mean": [0.5] * 3, "std": [0.5] * 3,
})
family = va.supported_models("scaled_vit_*")
assert family["name"].tolist() == ["scaled_vit_tiny"] and not family["refused"].any(), family
images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
from audit.controls.added import run_added
from audit.controls.identities import Subject
[control] = run_added(Subject(net.backbone.build_as_is(2).eval(), images[:2], images[2:]))
assert (control.id, control.passed, control.added.title) == (
    "added:blank", True, "What heads write depends on the picture"
)
assert control.added.package == "vit-audit-example 0.1.0" and len(control.numbers) == 2 and min(control.numbers) > 0

effects = va.patch_heads(net, images[:2], images[2:], heads=[(0, 0), (0, 1)])
assert effects.abs().max() > 0 and va.patch_heads(net, images, images).abs().max() == 0
"""


@pytest.mark.long
def test_the_template_package_is_installed_and_used(tmp_path: Path) -> None:
    place = tmp_path / "installed"
    source = tmp_path / "plugin"
    subprocess.run(["cp", "-r", ROOT / "examples" / "plugin", source], check=True)  # setuptools builds in its folder
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", "--no-deps",
           "--no-build-isolation", "--target", place, source]  # fmt: skip
    subprocess.run(pip, check=True, capture_output=True)
    said = in_python(USED, tmp_path, place)
    assert said.returncode == 0, said.stderr


def in_python(code: str, folder: Path, place: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(map(str, (place, ROOT)))
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )


Declare = Callable[..., None]


@pytest.fixture
def declare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Declare]:
    """Return a function that installs a package of one module, by hand."""
    monkeypatch.syspath_prepend(str(tmp_path / "site"))

    def made(group: str, name: str, code: str, package: str = "added") -> None:
        info = tmp_path / "site" / f"{package}-1.2.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n", encoding="utf-8")
        (info / "entry_points.txt").write_text(f"[vit_audit.{group}]\n{name} = {package}_module:it\n", encoding="utf-8")
        (tmp_path / "site" / f"{package}_module.py").write_text(code, encoding="utf-8")
        monkeypatch.delitem(sys.modules, f"{package}_module", raising=False)
        plugins.cache_clear()

    yield made
    plugins.cache_clear()


def read(folder: Path) -> pd.DataFrame:
    spec = DataSpec(reader="added", path=str(folder))
    return read_raw(spec, folder / "card.yaml", None).frame


@pytest.mark.parametrize(
    ("code", "line"),
    [
        (
            "it = 1 / 0",
            "plug-in 'added' of added 1.2: cannot be imported (ZeroDivisionError: division by zero); repair",
        ),
        ("def it(path): return 3", "plug-in 'added' of added 1.2: gives no pandas.DataFrame with a column 'image'"),
        ("def it(path): raise KeyError('x')", "{}: cannot be read by added 1.2 (KeyError: 'x'); compare the folder"),
        ("import pandas\ndef it(path): return pandas.DataFrame({'image': ['../x']})", "{}: "),
    ],
)
def test_a_reader_that_fails_is_named(code: str, line: str, declare: Declare, tmp_path: Path) -> None:
    declare("datasets", "added", code)
    with pytest.raises(va.InputError) as caught:
        read(tmp_path)
    assert str(caught.value).startswith(line.format(tmp_path))
    assert "\n" not in str(caught.value)


def test_cells_of_a_reader_are_text_or_missing(declare: Declare, tmp_path: Path) -> None:
    declare(
        "datasets",
        "added",
        "import pandas\ndef it(path): return pandas.DataFrame({'image': ['a'], 'age': [3], 'b': [None]}, index=[7])",
    )
    frame = read(tmp_path)
    assert frame.to_dict("list") == {"image": ["a"], "age": ["3"], "b": [None]}


def test_readers_that_nobody_declares_are_refused_with_those_that_there_are(declare: Declare) -> None:
    def refused() -> str:
        with pytest.raises(va.CardError) as caught:
            va.Card(data={"reader": "adde", "path": "x"}, groups={"g": {"column": "g"}})
        return str(caught.value)

    assert "'adde' is not one of table, huggingface" in refused()
    assert "'added'" not in refused()
    declare("datasets", "added", "")
    assert refused().endswith("hagrid, added; did you mean 'added'?")


def test_a_name_that_two_packages_declare_is_refused(declare: Declare, tmp_path: Path) -> None:
    declare("datasets", "added", "", package="one")
    declare("datasets", "added", "", package="two")
    with pytest.raises(va.InputError, match=r"'added': is declared by one 1\.2 and by two 1\.2; uninstall one of them"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("name", "code", "line"),
    [
        ("junit.xml", "def it(audit, digest): return ''", "has a name that is no file name of its own"),
        ("../x", "def it(audit, digest): return ''", "has a name that is no file name of its own"),
        ("x.txt", "def it(audit, digest): return b''", "makes a bytes, no text"),
        ("x.txt", "def it(audit): return ''", "makes no export (TypeError: "),
    ],
)
def test_an_export_that_fails_is_named(name: str, code: str, line: str, declare: Declare) -> None:
    declare("exports", name, code)
    with pytest.raises(va.InputError) as caught:
        exports(examples()["passed"], "d")
    assert str(caught.value).startswith(f"plug-in '{name}' of added 1.2: {line}")


def test_a_family_that_is_none_is_named(declare: Declare, tmp_path: Path) -> None:
    declare("models", "added", "it = int")
    said = in_python("import vit_audit as va; va.supported_models()", tmp_path, tmp_path / "site")
    assert said.stderr.splitlines()[-1] == (
        "audit.errors.InputError: plug-in 'added' of added 1.2: is no pair of a torch.nn.Module's class and an "
        "Adapter's class; repair that package, or uninstall it"
    )


CONTROL = """
from audit.controls.added import AddedControl
def measure(model, images, donors):
    assert not model.training and images.shape == donors.shape
    return {numbers}
it = AddedControl(measure=measure, reduced="smallest", relation=">", threshold=0.5, title="A bell is heard",
                  statistic="loudness, bels", meaning="It rings.", fix="ring louder")
"""
SUBJECT = Subject(tiny(), noise_images(2), noise_images(2, seed=1))


@pytest.mark.parametrize(("numbers", "passed"), [([0.6, 2.0], True), ([0.5, 2.0], False), ([float("nan"), 2.0], False)])
def test_a_control_of_a_package_is_judged_and_judged_again_from_its_numbers(
    numbers: list[float], passed: bool, declare: Declare
) -> None:
    declare("controls", "bell", CONTROL.format(numbers=f"[float(v) for v in {[str(v) for v in numbers]}]"))
    (control,) = run_added(SUBJECT)
    assert (control.id, control.kind, control.gates, control.n) == ("added:bell", "effect", "audit", 2)
    assert control.passed is passed
    assert judge_again(control, numbers_table([control])).passed is passed
    assert versions_of_added() == {"bell": "added 1.2"}


def test_a_report_has_its_words_and_names_its_package(declare: Declare) -> None:
    declare("controls", "bell", CONTROL.format(numbers="[0.1, 2.0]"))
    controls = ControlReport(valid=False, controls=run_added(SUBJECT), grids=[])
    audit = examples()["invalid"].model_copy(update={"controls": controls, "reasons": []})
    say, (control,) = Sentences(audit), controls.controls
    assert say.control("title", control) == "A bell is heard"
    assert say.control("where", control) == "this audit's model, by added 1.2"
    assert say.control("fix", control) == "ring louder"
    page = render_html(audit, "0" * 64)
    assert all(words in page for words in ("A bell is heard", "added 1.2", "loudness, bels", "ring louder"))


@pytest.mark.parametrize(
    ("code", "line"),
    [
        ("it = 3", "is no audit.controls.added.AddedControl"),
        (CONTROL.format(numbers="[]"), "measures nothing (it gives no numbers)"),
        (CONTROL.format(numbers="1 / 0"), "measures nothing (ZeroDivisionError: division by zero)"),
        (CONTROL.format(numbers="[1]").replace("It rings.", ""), "has a meaning that is not one line of at most 300"),
        (CONTROL.format(numbers="[1]").replace('">"', '"~"'), "compares by '~' what is summed up as 'smallest'"),
    ],
)
def test_a_control_that_fails_is_named(code: str, line: str, declare: Declare) -> None:
    declare("controls", "bell", code)
    with pytest.raises(va.InputError) as caught:
        run_added(SUBJECT)
    assert str(caught.value).startswith(f"plug-in 'bell' of added 1.2: {line}")


@pytest.mark.long
@pytest.mark.parametrize(("numbers", "outcome"), [("[0.6]", None), ("[0.4]", "INVALID")])
def test_a_whole_audit_stands_or_falls_with_it(
    numbers: str, outcome: str | None, declare: Declare, world: World, invoke: Invoke, tmp_path: Path
) -> None:
    declare("controls", "bell", CONTROL.format(numbers=numbers))
    with world.entered():
        said = invoke("run", write_card(tmp_path / "card.yaml"), "--out", tmp_path / "out")
    (folder,) = (tmp_path / "out").iterdir()
    result = va.open_run(folder)
    control = next(c for c in result.record.controls.controls if c.id == "added:bell")
    assert control.passed is (outcome is None)
    assert (result.outcome == "INVALID") is (outcome is not None), said.output
    assert "A bell is heard" in (folder / "report.html").read_text(encoding="utf-8")
    assert result.verify().faults == []
