"""edgeres init"""

from __future__ import annotations

from pathlib import Path

import click

from edgeres.cli.options import UserPath, as_json
from edgeres.cli.show import echo, print_json

FILE = "pyproject.toml"
# Every line is a comment: a key counts where its # is taken away. Values are the defaults, where there are any.
SECTION = """\
[tool.edgeres]
# Read by edgeres build, verify and baseline in this folder and below it. Options on the command line come first.
# validation = "data/val"       # images to verify on: one folder per class
# baseline = "baseline.json"    # accepted build, written by: edgeres baseline accept BUNDLE

# Gates: what a model must keep to pass. false switches a default one off.
# max-drop = 1.0                # top-1 lost against FP32, in points
# max-class-drop = 10.0         # top-1 lost by any class, where it is significant
# max-regression = 0.5          # top-1 lost against the baseline
# max-sqnr-loss = 3.0           # dB of logit SQNR lost against the baseline
# max-slowdown = 15.0           # per cent of latency against the baseline
# min-top1 = 90.0               # per cent of labelled images that INT8 gets right; no default
# min-agreement = 98.0          # per cent of images that FP32 and INT8 put into the same class; no default
# min-speedup = 2.0             # FP32's p50 latency over INT8's; no default
# max-size-mb = 60.0            # size of each INT8 graph and engine; no default

# on-unsure = "fail"            # default "warn": gates that too few images leave uncertain
# allow = []                    # checks that only report; edgeres verify --help
"""
FOLDERS = ("data/train", "data/val")
README = """\
One folder per class, named as the class, with its images:

    data/train/stop/0001.jpg    calibration: a few hundred images of what the camera sees
    data/val/stop/0900.jpg      verification: other images, as many as there are
"""


@click.command("init")
@click.argument("directory", type=UserPath(file_okay=False), default=".", metavar="[DIR]")
@as_json
def command(directory: Path, as_json: bool) -> None:
    """Write a commented [tool.edgeres] into pyproject.toml, and folders for images. Files that exist are kept.

    \b
    edgeres init
    edgeres init robot
    """
    from edgeres.cli.config import has_table, holds_table
    from edgeres.errors import UsageError
    from edgeres.files import write_file

    path = directory / FILE
    if path.exists() and has_table(path):
        raise UsageError("has a [tool.edgeres]", where=path, hint="edit it; edgeres verify --help lists the limits")
    before = path.read_bytes().decode() if path.exists() else ""
    gap = "" if not before else "\n" if before.endswith("\n") else "\n\n"
    text = f"{before}{gap}{SECTION}"
    if not holds_table(text):
        what = f"{SECTION.splitlines()[0]} cannot stand behind what is there"
        raise UsageError(what, where=path, hint="write [tool] and [[tool]] as tables, not as tool = {...}")
    write_file(path, text.encode())
    made = [path]
    for folder in (directory / name for name in FOLDERS):
        if not folder.exists():
            folder.mkdir(parents=True)
            made.append(folder)
    if not (readme := directory / "data" / "README.txt").exists():
        write_file(readme, README.encode())
        made.append(readme)
    if as_json:
        print_json({"written": [str(one) for one in made]})
        return
    for one in made:
        echo(f"{one}: {'[tool.edgeres] added' if one == path and before else 'written'}")
    echo(
        "",
        "next: put images into folders named as the classes, then",
        "  edgeres build --model resnet18 --weights FILE --calibration data/train \\",
        "      --validation data/val",
    )
