"""Promises about hostile input that are kept by what the code does not do."""

from __future__ import annotations

import ast
import http.server
import io
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pikepdf
import pytest
from PIL import Image

import audit
from audit.card.load import load_card
from audit.errors import CardError
from audit.report.html import environment
from audit.report.pdf import render_pdf

pytestmark = pytest.mark.unit
SOURCES = sorted(Path(audit.__file__).parent.rglob("*.py"))
# Calls that could run what a file says, and what makes some of them safe.
FORBIDDEN = {
    "pickle.load", "pickle.loads", "pickle.Unpickler", "dill.load", "joblib.load", "marshal.loads", "shelve.open",
    "pd.read_pickle", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "eval", "exec", "os.system", "os.popen",
    "subprocess.run", "subprocess.Popen", "subprocess.check_output", "torch.hub.load", "torch.jit.load", "ET.parse",
    "ET.fromstring",
}  # fmt: skip
NEEDS = {"torch.load": ("weights_only", True), "np.load": ("allow_pickle", False), "from_pretrained": None}
# These read what a process of the same user has sent: to one that it started itself, or in a list of tasks that is
# refused where somebody else owns it or may write it (tests/work/test_shards.py).
SENT = ("pool.py", "sending.py")
CALLED = {("slurm.py", "subprocess.run")}  # SLURM's own programs, and no shell


def calls() -> Iterator[tuple[Path, ast.Call]]:
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                yield path, node


def test_no_call_runs_what_a_file_says() -> None:
    assert len(SOURCES) > 80
    seen = set()
    for path, call in calls():
        name = ast.unparse(call.func)
        assert name not in FORBIDDEN or (path.name, name) in CALLED, f"{path.name}:{call.lineno} {name}"
        if name in NEEDS:
            wanted = NEEDS[name]
            assert wanted is not None, f"{path.name}:{call.lineno} {name}"
            given = {k.arg: getattr(k.value, "value", None) for k in call.keywords}
            from_memory = path.name in SENT and ast.unparse(call.args[0]) == "io.BytesIO(content)"
            assert from_memory or given.get(wanted[0]) is wanted[1], f"{path.name}:{call.lineno} {name}"
            seen.add(name)
        assert not any(k.arg == "trust_remote_code" for k in call.keywords), f"{path.name}:{call.lineno}"
    assert seen == {"torch.load", "np.load"}


def test_a_card_of_50_megabytes_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "card.yaml"
    path.write_bytes(b"# " + b"x" * 50_000_000)
    begun = time.process_time()
    with pytest.raises(CardError, match="50,000,002 bytes is over the limit"):
        load_card(path)
    assert time.process_time() - begun < 0.5


def test_a_billion_laughs_are_refused_at_once(tmp_path: Path) -> None:
    lines = ["a0: &a0 [ha, ha]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    (tmp_path / "card.yaml").write_text("\n".join(lines), encoding="utf-8")
    begun = time.process_time()
    with pytest.raises(CardError, match=r"card.yaml:2 card: alias '\*a0' is not allowed"):
        load_card(tmp_path / "card.yaml")
    assert time.process_time() - begun < 0.5


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.system [touch x]", "!!python/name:os.system", "!x y"])
def test_tags_of_a_card_make_nothing(tmp_path: Path, tag: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "card.yaml").write_text(f"data: {tag}\n", encoding="utf-8")
    with pytest.raises(CardError, match="remove the tag"):
        load_card(tmp_path / "card.yaml")
    assert [p.name for p in tmp_path.iterdir()] == ["card.yaml"]


def test_every_template_escapes() -> None:
    templates = environment()
    assert templates.autoescape is True
    for name in templates.list_templates():
        source = (templates.loader.get_source(templates, name)[0]) if templates.loader else ""
        assert "|safe" not in source.replace(" ", ""), name
        assert "autoescape" not in source, name


@pytest.fixture
def asked() -> Iterator[tuple[str, list[str]]]:
    """Serve a picture to whoever asks, and note what was asked for."""
    paths: list[str] = []
    page = io.BytesIO()
    Image.new("RGB", (9, 9), "red").save(page, "PNG")

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(page.getvalue())

        def log_request(self, code: object = "-", size: object = "-") -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", paths
    server.shutdown()
    server.server_close()
    thread.join()


def test_the_printer_opens_neither_the_network_nor_the_disk(asked: tuple[str, list[str]], tmp_path: Path) -> None:
    address, paths = asked
    Image.new("RGB", (9, 9), "red").save(tmp_path / "private.png")
    file = (tmp_path / "private.png").as_uri()
    page = f"""<!doctype html><html lang="en"><head><title>x</title><link rel="stylesheet" href="{address}/a.css">
        <link rel="attachment" href="{file}">
        <style>@import "{address}/b.css"; @font-face {{font-family: f; src: url("{address}/f.ttf")}}
        body {{background: url("{address}/c.png"); font-family: f}} p {{list-style-image: url("{file}")}}</style></head>
        <body><p>words</p><img src="{address}/d.png" alt="d"><img src="{file}" alt="e"><img src="private.png" alt="f">
        <object data="{file}"></object><svg><image href="{file}" width="9" height="9"/></svg></body></html>"""
    content = render_pdf(page, b"{}", "0" * 64, "2026-03-01T00:00:00+00:00")
    assert paths == []
    with pikepdf.open(io.BytesIO(content)) as pdf:
        streams = [o for o in pdf.objects if isinstance(o, pikepdf.Stream)]
        assert not [o for o in streams if o.get("/Subtype") == "/Image"]
        assert list(pdf.attachments) == ["audit.json"]
