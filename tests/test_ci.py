"""The files for CI: the shell steps of the YAML files are run in a new directory, as CI runs them."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import yaml
from click.testing import CliRunner
from engine_graphs import resnet
from junitparser import JUnitXml
from onnx import numpy_helper
from packaging.requirements import Requirement
from PIL import Image
from test_cli import brief

import edgeres
from edgeres.bundle import REPORT, Bundle, seal
from edgeres.cli import cli
from edgeres.data.preprocess import apply
from edgeres.files import write_json
from edgeres.graph.forms import FORMS
from edgeres.pipeline.verify import accept_baseline
from edgeres.records import U8, Preprocess
from edgeres.verify import measure

ROOT = Path(__file__).parents[1]
ACTION, GITLAB = ROOT / ".github/actions/verify/action.yml", ROOT / ".gitlab/edgeres-verify.yml"
HOOKS, PAGE = ROOT / ".pre-commit-hooks.yaml", ROOT / "docs/ci.md"
PX, CLASSES = 16, 10

# The real command, but with short latency measurements: the test is about the shell around it.
EDGERES = f"""#!/bin/sh
exec {sys.executable} -c '
import functools
from edgeres.verify import measure
measure.LatencyPlan = functools.partial(measure.LatencyPlan, warmup_seconds=0.0, min_seconds=0.01, block_seconds=0.001)
from edgeres.cli import main
main()
' "$@"
"""


# A colour for each class; pictures add noise to it.
COLOURS = np.array([*np.ndindex(2, 2, 2)]) * 160 + 48
COLOURS = np.concatenate([COLOURS, [[128, 128, 128], [208, 128, 48]]])


def picture(label: int, rng: np.random.Generator) -> U8:
    return (COLOURS[label] + rng.integers(-40, 41, (PX, PX, 3))).astype(np.uint8)


def network() -> onnx.ModelProto:
    """A random network with a classifier that is fitted to the colours: the check of FP32 passes it."""
    model, rng = resnet(quantized=False, width=4, px=PX), np.random.default_rng(9)
    labels = np.arange(200) % CLASSES
    inputs = np.stack([apply(picture(label, rng), Preprocess((PX, PX))) for label in labels])
    (head,) = (node for node in model.graph.node if node.op_type == "Gemm")
    probe = onnx.ModelProto.FromString(model.SerializeToString())
    probe.graph.output.append(onnx.ValueInfoProto(name=head.input[0]))
    features = ort.InferenceSession(probe.SerializeToString()).run([head.input[0]], {"x": inputs})[0].astype(np.float64)
    ridge = features.T @ features + 1e-3 * np.trace(features.T @ features) / len(features.T) * np.eye(len(features.T))
    fitted = np.linalg.solve(ridge, features.T @ (10 * np.eye(CLASSES)[labels])).T.astype(np.float32)
    (weight,) = (tensor for tensor in model.graph.initializer if tensor.name == head.input[1])
    weight.CopyFrom(numpy_helper.from_array(fitted, weight.name))
    return model


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project: a network, images, a good bundle with its baseline, and one with a scale ten times too small."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "model.onnx").write_bytes(network().SerializeToString())
    labels, rng = np.arange(40) % CLASSES, np.random.default_rng(0)
    np.savez(folder / "images.npz", images=np.stack([picture(label, rng) for label in labels]), labels=labels)
    images = folder / "images.npz"
    given: dict[str, Any] = {"calibration": images, "validation": images, "effort": "fast", "targets": "cpu"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "LatencyPlan", brief())
        edgeres.build(folder / "model.onnx", **given, output=folder / "good.edgeres")
    write_json(folder / "baseline.json", accept_baseline(folder / "good.edgeres"))
    shutil.copytree(folder / "good.edgeres", folder / "bad.edgeres")
    shrink(folder / "bad.edgeres")
    (folder / "bin").mkdir()
    (folder / "bin" / "edgeres").write_text(EDGERES)
    (folder / "bin" / "edgeres").chmod(0o755)
    return folder


def shrink(bundle: Path) -> None:
    """Make one activation's scale ten times too small, and seal the bundle again."""
    path = bundle / FORMS["cpu"].file
    model = onnx.load(path)
    node = [node for node in model.graph.node if node.op_type == "QuantizeLinear"][3]
    for tensor in model.graph.initializer:
        if tensor.name == node.input[1]:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) / np.float32(10), tensor.name))
    onnx.save(model, path)
    seal(bundle, Bundle(bundle).manifest)


@pytest.fixture
def work(made: Path, tmp_path: Path) -> Path:
    """A copy of the project, where a job runs."""
    folder = tmp_path / "job"
    shutil.copytree(made, folder)
    return folder


@dataclass(frozen=True)
class Ended:
    """The result of a step."""

    code: int
    out: str
    err: str


def bash(script: str, folder: Path, env: Mapping[str, str], *options: str) -> Ended:
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    kept = {name: value for name, value in os.environ.items() if name in {"HOME", "LANG", "LC_ALL", "PYTHONPATH"}}
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", *options, "-c", script],
        cwd=folder,
        env={**kept, "PATH": path, "OMP_NUM_THREADS": "1", **env},
        capture_output=True,
        text=True,
        check=False,
    )
    return Ended(done.returncode, done.stdout, done.stderr)


# --------------------------------------------------------------------------------------------------------------- GitHub


def action() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(ACTION.read_text(encoding="utf-8"))
    return content


RUNNER = {"GITHUB_ACTION_PATH": str(ACTION.parent), "GITHUB_JOB": "verify", "GITHUB_REPOSITORY": "OWNER/robot"}
RUNNER |= {"RUNNER_OS": "Linux", "RUNNER_ARCH": "X64"}


def github(folder: Path, **inputs: str) -> tuple[Ended, str, dict[str, str]]:
    """Run the action's shell steps as a runner does; returns the result, the job's summary, and the outputs."""
    content = action()
    given = {name: entry.get("default", "") for name, entry in content["inputs"].items()} | inputs
    known = {f"inputs.{name}": value for name, value in given.items()}
    for file in ("summary", "output"):
        (folder / file).write_text("")
    runner = RUNNER | {"GITHUB_STEP_SUMMARY": str(folder / "summary"), "GITHUB_OUTPUT": str(folder / "output")}
    done = Ended(0, "", "")
    for step in content["runs"]["steps"]:
        if "run" not in step or "if" in step or done.code:
            continue
        assert step["shell"] == "bash"
        env = {
            name: re.sub(r"\$\{\{ *(\S+) *\}\}", lambda match: known[match[1]], value)
            for name, value in step.get("env", {}).items()
        }
        assert "${{" not in step["run"]  # inputs reach the shell as variables alone, never as code
        done = bash(step["run"], folder, runner | env, "-eo", "pipefail")
    lines = (folder / "output").read_text().splitlines()
    return done, (folder / "summary").read_text(), dict(line.split("=", 1) for line in lines)


def test_the_action_passes_a_good_bundle(work: Path) -> None:
    done, summary, outputs = github(work, bundle="good.edgeres", validation="images.npz", baseline="baseline.json")
    assert (done.code, outputs["exit-code"]) == (0, "0"), done
    assert summary.startswith("## model in INT8: ")
    assert outputs["artifact"] == "edgeres-verify-good.edgeres-Linux-X64"
    assert "::error" not in done.out
    report = json.loads((work / "edgeres-report" / REPORT).read_text())
    assert report["baseline"]["same_images"] is True
    assert (work / "edgeres-report" / "report.html").stat().st_size > 1000


def test_the_action_fails_a_bad_one_and_says_why(work: Path) -> None:
    done, summary, outputs = github(work, bundle="bad.edgeres", validation="images.npz", baseline="baseline.json")
    assert (done.code, outputs["exit-code"]) == (1, "1"), done
    assert "❌ failed" in summary
    assert "scales of activations" in summary
    printed, mark, annotations = done.out.partition(
        re.findall("::stop-commands::([0-9a-f]{32})\n", done.out)[0] + "::\n"
    )
    assert mark and "::error title=model%3A scales of activations::" in annotations
    assert not re.search("^::(error|warning)", printed, re.M)
    suites = JUnitXml.fromfile(str(work / "edgeres-report" / "edgeres.xml"))
    assert any(case.name == "scales of activations" and case.result for suite in suites for case in suite)


@pytest.mark.parametrize(
    ("inputs", "code", "words"),
    [
        ({"bundle": "nowhere"}, 3, "no such bundle"),
        ({"bundle": "good.edgeres", "args": "--max-drop much"}, 2, "is neither a number nor off"),
        ({"bundle": "good.edgeres", "args": "--allow 'x; touch pwned'"}, 2, "pwned"),
    ],
)
def test_the_action_keeps_the_exit_code(work: Path, inputs: dict[str, str], code: int, words: str) -> None:
    (work / "edgeres-report").mkdir()
    (work / "edgeres-report" / "summary.md").write_text("of the run before")
    done, summary, outputs = github(work, validation="images.npz", **inputs)
    assert (done.code, outputs["exit-code"]) == (code, str(code))
    assert f"not verified, exit code {code}" in summary
    assert words in summary
    assert words in done.err
    assert words in done.out.splitlines()[-1] and done.out.splitlines()[-1].startswith("::error title=edgeres verify::")
    assert not (work / "pwned").exists()


def test_more_options_reach_the_command(work: Path) -> None:
    done, summary, _ = github(work, bundle="good.edgeres", validation="images.npz", args="--max-size-mb 0.000001")
    assert done.code == 1
    assert "size" in summary


def test_the_report_is_uploaded_whatever_the_verdict() -> None:
    upload = action()["runs"]["steps"][-1]
    assert upload["uses"].startswith("actions/upload-artifact@")
    assert "always()" in upload["if"]
    assert upload["with"]["path"] == "${{ inputs.output }}"
    install = next(step["run"] for step in action()["runs"]["steps"] if step["name"] == "Install edgeres")
    (above,) = re.findall(r"source=\$GITHUB_ACTION_PATH(\S+)", install)
    source = Path(f"{ACTION.parent}{above}")
    assert (source / "pyproject.toml").is_file() and (source / "constraints.txt").is_file()
    assert '-c "$source/constraints.txt"' in install


GH = """#!/bin/sh
echo "$*" >> calls
case "$*" in
  *--paginate*) [ -z "$BROKEN" ] || exit 1; [ ! -f posted ] || echo 17 ;;
  *POST*) cp report/comment.md posted ;;
  *PATCH*) cp report/comment.md patched ;;
esac
"""


def comment(folder: Path, **more: str) -> Ended:
    step = next(step for step in action()["runs"]["steps"] if step["name"] == "Comment on the pull request")
    assert "${{" not in step["run"] and "github.event.pull_request.number" in step["if"]
    given = {"BUNDLE": "models/a.edgeres", "OUTPUT": "report", "GH_TOKEN": "t", "PULL": "7", **more}
    assert given.keys() >= step["env"].keys()
    return bash(step["run"], folder, RUNNER | given, "-eo", "pipefail")


def test_the_comment_on_a_pull_request_is_updated_by_later_runs(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/gh").write_text(GH)
    (tmp_path / "bin/gh").chmod(0o755)
    (tmp_path / "report").mkdir()
    for text, written in (("first", "posted"), ("second", "patched")):
        (tmp_path / "report/summary.md").write_text(text)
        assert comment(tmp_path) == Ended(0, "", "")
        assert (tmp_path / written).read_text() == f"<!-- edgeres-verify-models-a.edgeres -->\n{text}"
    posted, patched = [call for call in (tmp_path / "calls").read_text().splitlines() if "-X" in call]
    assert "POST repos/OWNER/robot/issues/7/comments" in posted
    assert "PATCH repos/OWNER/robot/issues/comments/17" in patched
    assert 'startswith("<!-- edgeres-verify-models-a.edgeres -->")' in (tmp_path / "calls").read_text()


def test_a_token_that_may_not_comment_fails_no_job(tmp_path: Path) -> None:
    """That of a pull request from a fork may only read."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/gh").write_text(GH)
    (tmp_path / "bin/gh").chmod(0o755)
    (tmp_path / "report").mkdir()
    (tmp_path / "report/summary.md").write_text("x")
    done = comment(tmp_path, BROKEN="1")
    assert done.code == 0 and done.out.startswith("::warning title=edgeres verify::the comment could not be written")


# --------------------------------------------------------------------------------------------------------------- GitLab


def gitlab(folder: Path, shell: str = "bash", **variables: str) -> Ended:
    job = yaml.safe_load(GITLAB.read_text(encoding="utf-8"))[".edgeres-verify"]
    script = "\n".join((*job["before_script"], *job["script"]))
    given = {**job["variables"], **variables}
    return bash(f"exec {shell} -e -c {shlex.quote(script)}", folder, given)


@pytest.mark.parametrize(("bundle", "code", "shell"), [("good.edgeres", 0, "bash"), ("bad.edgeres", 1, "sh")])
def test_the_template_for_gitlab(work: Path, bundle: str, code: int, shell: str) -> None:
    given = {"EDGERES_BUNDLE": bundle, "EDGERES_VALIDATION": "images.npz", "EDGERES_BASELINE": "baseline.json"}
    assert gitlab(work, shell, **given).code == code
    job = yaml.safe_load(GITLAB.read_text(encoding="utf-8"))[".edgeres-verify"]
    suites = JUnitXml.fromfile(str(work / job["artifacts"]["reports"]["junit"]))
    failed = [case.name for suite in suites for case in suite if case.result and case.result[0].type == "FAIL"]
    assert ("scales of activations" in failed) is bool(code)
    assert (work / job["artifacts"]["paths"][0] / "report.html").is_file()
    assert job["artifacts"]["when"] == "always" and job["artifacts"]["expose_as"]
    metrics = (work / job["artifacts"]["reports"]["metrics"]).read_text()
    assert f'edgeres_passed{{model="model"}} {0.0 if code else 1.0}' in metrics and metrics.endswith("# EOF\n")


def test_an_image_without_edgeres_says_what_to_set(work: Path) -> None:
    shutil.rmtree(work / "bin")
    job = yaml.safe_load(GITLAB.read_text(encoding="utf-8"))[".edgeres-verify"]
    for source in ("", "edgeres"):  # by a name alone pip would take a stranger's package
        given = {**job["variables"], "PATH": "/usr/bin:/bin", "EDGERES_SOURCE": source}
        done = bash(job["before_script"][0], work, given, "-e")
        assert (done.code, "set EDGERES_SOURCE" in done.out) == (3, True)


def test_pip_understands_the_template_s_requirement() -> None:
    (name,) = re.findall(r'pip install --quiet "(.*?)"', GITLAB.read_text(encoding="utf-8"))
    for url in (
        "https://gitlab.example.org/o/e/-/archive/v1/e-v1.tar.gz",
        "git+https://example.org/o/e@v1",
        "file:///e",
    ):
        requirement = Requirement(name.replace("${EDGERES_SOURCE}", url))
        assert (requirement.name, requirement.extras, requirement.url) == ("edgeres", {"report"}, url)


# -------------------------------------------------------------------------------------------- what a report gives away


@pytest.mark.parametrize(
    ("words", "table", "shown"),
    [
        ("", "", True),
        ("--no-thumbnails", "", False),
        ("", "thumbnails = false", False),
        ("--thumbnails", "thumbnails = false", True),
    ],
)
def test_reports_contain_images_only_where_allowed(
    work: Path, monkeypatch: pytest.MonkeyPatch, words: str, table: str, shown: bool
) -> None:
    """Replace the pictures of images that INT8 gets wrong by one pixel."""
    monkeypatch.setattr("edgeres.verify.measure._thumbnails", lambda *given: {"images[0]": "/9j/"})
    monkeypatch.setattr(measure, "LatencyPlan", brief())
    monkeypatch.chdir(work)
    (work / "pyproject.toml").write_text(f"[tool.edgeres]\n{table}\n")
    arguments = ["verify", "good.edgeres", "--validation", "images.npz", "-o", "out", *words.split()]
    CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert bool(json.loads((work / "out" / REPORT).read_text())["thumbnails"]) is shown


# ----------------------------------------------------------------------------------------------------------- pre-commit


def hook(folder: Path, *arguments: str) -> Ended:
    (entry,) = yaml.safe_load(HOOKS.read_text(encoding="utf-8"))
    assert entry["pass_filenames"] is False
    return bash(" ".join((entry["entry"], *arguments)), folder, {})


def test_the_hook_passes_where_all_fits_together(work: Path) -> None:
    done = hook(work, "good.edgeres")
    assert done.code == 0, done
    assert [line.split()[0] for line in done.out.splitlines()] == ["ok"] * 3


def test_the_hook_names_what_does_not_fit(work: Path) -> None:
    done = hook(work, "good.edgeres", "bad.edgeres")
    assert done.code == 1
    assert "FAIL  baseline of bad.edgeres: baseline.json is of another build, model.int8.cpu.onnx differs" in done.out
    (work / "pyproject.toml").write_text("[tool.edgeres]\nmax-size-mb = 0.000001\n")
    assert "FAIL  limits and baseline: the accepted build itself is beyond a limit: size" in hook(work).out
    (work / "pyproject.toml").write_text("[tool.edgeres]\nmaxdrop = 1\n")
    done = hook(work)
    assert (done.code, "did you mean max-drop?" in done.err) == (2, True)


def test_the_hook_fails_for_a_baseline_that_had_failed(work: Path) -> None:
    baseline = json.loads((work / "baseline.json").read_text())
    del baseline["digest"]  # it does not fit the changed outcome
    write_json(work / "baseline.json", baseline | {"outcome": "failed"})
    assert (hook(work).code, "although a gate or check had failed" in hook(work).out) == (1, True)
    (work / "baseline.json").write_text("{")
    assert hook(work).code == 3
    (work / "baseline.json").unlink()
    assert hook(work).code == 3


def test_the_hook_finds_a_file_that_was_changed_after_it_was_written(work: Path) -> None:
    with (work / "good.edgeres" / FORMS["cpu"].file).open("ab") as stream:
        stream.write(b"x")
    done = hook(work, "good.edgeres")
    assert (done.code, "was changed after it was written" in done.err) == (3, True)


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("pyproject.toml", True),
        ("ci/baseline.json", True),
        ("baseline-arm.json", True),
        ("resnet18.edgeres/manifest.json", True),
        ("README.md", False),
    ],
)
def test_the_hook_runs_only_for_files_that_it_checks(path: str, wanted: bool) -> None:
    (entry,) = yaml.safe_load(HOOKS.read_text(encoding="utf-8"))
    assert bool(re.search(entry["files"], path)) is wanted


# ------------------------------------------------------------------------------------------------------------- the page


def test_the_commands_of_the_page_work(work: Path) -> None:
    """Every command and every file of docs/ci.md, in the order of the page, in a new repository."""
    project = work / "project"
    for part, seed in (("train", 1), ("val", 0)):
        pictures(project / "data" / part, seed)
    shutil.copy(work / "model.onnx", project)
    shutil.copytree(work / "bin", project / "bin")
    env = {f"GIT_{who}_{what}": "a@b.c" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    assert bash("git init -q", project, env).code == 0
    workflow, written = "", list[str]()
    for where, kind, text in blocks(PAGE.read_text(encoding="utf-8")):
        if kind == "bash":
            done = bash(text, project, env, "-e")
            assert done.code == 0, (text, done)
            if "-o model.edgeres" in text:
                shutil.copytree(project / "model.edgeres", project / "accepted.edgeres")
        else:
            (project / where).parent.mkdir(parents=True, exist_ok=True)
            (project / where).write_text(text)
            written.append(where)
            workflow = text if where.startswith(".github") else workflow
    assert written == ["pyproject.toml", ".github/workflows/verify.yml", ".gitlab-ci.yml", ".pre-commit-config.yaml"]
    assert {"compare.html", "sheet.html", "edgeres-report", "baseline.json"} <= {p.name for p in project.iterdir()}
    step = yaml.safe_load(workflow)["jobs"]["verify"]["steps"][-1]
    assert (ROOT / step["uses"].split("/", 2)[2].split("@")[0] / "action.yml").is_file()
    assert github(project, **step["with"])[0].code == 0
    job = yaml.safe_load((project / ".gitlab-ci.yml").read_text())["verify"]
    assert gitlab(project, **job["variables"]).code == 0
    (used,) = yaml.safe_load((project / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    assert used["id"] == yaml.safe_load(HOOKS.read_text(encoding="utf-8"))[0]["id"]
    assert hook(project, *used["args"]).code == 0
    shrink(project / "model.edgeres")  # the pull request that breaks it
    assert hook(project, *used["args"]).code == 1
    assert github(project, **step["with"])[0].code == 1


def blocks(page: str) -> list[tuple[str, str, str]]:
    """The file that is named ahead of each block, its language, its text."""
    found = re.findall(r"(?:`([^`]+)`[^`]*?:\n\n)?```(\w+)\n(.*?)```", page, re.S)
    assert len(found) == page.count("\n```") // 2
    return [(where, kind, text) for where, kind, text in found]


def pictures(folder: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for i in range(40):
        path = folder / f"class {i % CLASSES}" / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(i % CLASSES, rng)).save(path)
