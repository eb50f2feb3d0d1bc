"""make audit: what it asks pip-audit, and what it says of the answer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

AUDIT = Path(__file__).parents[1] / ".ci" / "audit"
FAKE = """
import json, os, pathlib, sys
listed = pathlib.Path(sys.argv[sys.argv.index("-r") + 1]).read_text().split("\\n")
names = [line.split(";")[0].strip().split("==") for line in listed if line]
vulns = [{"id": "CVE-1", "fix_versions": ["9"]}]
answers = {
    "offline": [],
    "unknown": [{"name": n, "skip_reason": "not found"} for n, *_ in names],
    "clean": [{"name": n, "version": v, "vulns": []} for n, v in names],
    "bad": [{"name": n, "version": v, "vulns": vulns if n == "pillow" else []} for n, v in names],
}
if os.environ["ANSWER"] == "offline":
    sys.exit("cannot connect to the database")
print(json.dumps({"dependencies": answers[os.environ["ANSWER"]]}))
"""


@pytest.mark.parametrize(
    ("answer", "options", "code", "words"),
    [
        ("clean", (), 0, "0 vulnerabilities"),
        ("bad", (), 1, "pyproject.toml: pillow 12.3: CVE-1, fixed in 9"),
        ("offline", (), 0, "not audited, since the database cannot be reached (cannot connect to the database)"),
        ("unknown", (), 0, "not audited, since the database cannot be reached"),
        ("offline", ("--strict",), 1, "not audited"),
    ],
)
def test_what_is_said(tmp_path: Path, answer: str, options: tuple[str, ...], code: int, words: str) -> None:
    (tmp_path / "pip_audit.py").write_text(FAKE)
    own = {**os.environ, "PYTHONPATH": str(tmp_path), "ANSWER": answer}
    done = subprocess.run([sys.executable, AUDIT, *options], env=own, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (code, "")
    assert words in done.stdout and "constraints.txt: " in done.stdout and "pyproject.toml: " in done.stdout


def test_every_floor_is_audited() -> None:
    code = "import runpy; m = runpy.run_path(%r); import json; print(json.dumps([m['floors'](), m['pins']()]))"
    done = subprocess.run([sys.executable, "-c", code % str(AUDIT)], capture_output=True, text=True, check=True)
    floors, pins = json.loads(done.stdout)
    assert {"pillow==12.3", "numpy==1.23", "torch==2.13", "onnx==1.22", "dask==2026.1.1", "setuptools==83"} <= set(
        floors
    )
    assert not [line for line in (*floors, *pins) if "==" not in line or line.startswith(("python=", "=="))]
