"""Draw the pictures of README and documentation from the run in reports/sample.

    python docs/pictures/draw.py

Page one of the report is taken by chromium, where there is one.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
from PIL import Image, ImageChops
from PIL.PngImagePlugin import PngInfo

import vit_audit as va

HERE = Path(__file__).parent
SAMPLE = HERE.parents[1] / "reports" / "sample"
SCREEN = (1100, 1500)  # px, of which the blank margin is cut off


def drawn_from() -> str:
    """Return the hash of the record that the pictures are drawn from, which each picture names."""
    return hashlib.sha256((SAMPLE / "audit.json").read_bytes()).hexdigest()


def draw(folder: Path) -> list[Path]:
    """Draw every picture to a folder; returns the files."""
    result = va.open_run(SAMPLE)
    mpl.use("agg")
    with mpl.rc_context({"svg.hashsalt": "vit-audit"}):
        axes = {"ledgers": result.plot_ledgers()[0], "gaps": result.gaps.plot()}
        written = []
        for name, drawn in axes.items():
            written.append(folder / f"{name}.svg")
            about = {"Date": None, "Source": drawn_from(), "Title": f"{result.record.name}: {name}"}
            drawn.figure.savefig(written[-1], metadata=about)
            plt.close(drawn.figure)
    return written


def photograph(folder: Path, browser: str) -> Path:
    """Take page one of the report, below its contents, to a folder; returns the file."""
    target = folder / "report.png"
    size = ",".join(map(str, SCREEN))
    taken = ["--headless", "--no-sandbox", "--hide-scrollbars", f"--window-size={size}", f"--screenshot={target}"]
    subprocess.run(
        [browser, *taken, f"{(SAMPLE / 'report.html').as_uri()}#summary"], check=True, capture_output=True, timeout=300
    )
    about = PngInfo()
    about.add_text("Source", drawn_from())
    picture = Image.open(target).convert("RGB")
    blank = Image.new("RGB", picture.size, "white")
    cut = picture.crop(ImageChops.difference(picture, blank).getbbox())
    cut.convert("P", palette=Image.Palette.ADAPTIVE, colors=64).save(target, pnginfo=about, optimize=True)
    return target


if __name__ == "__main__":
    for drawn in draw(HERE):
        print(drawn)
    if (chromium := shutil.which("chromium")) is None:
        print("report.png stays as it is: there is no chromium")
    else:
        with tempfile.TemporaryDirectory() as work:
            print(shutil.copy(photograph(Path(work), chromium), HERE))
