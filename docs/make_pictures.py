"""Takes the pictures of README in Chromium: docs/report.png and docs/try.png, of a bundle and photographs.

edgeres build --model resnet18 --int8 --effort fast
python docs/make_pictures.py resnet18.edgeres stop.jpg forklifts.jpg
"""

from __future__ import annotations

import sys
import tempfile
import threading
from io import BytesIO
from pathlib import Path

from PIL import Image

from edgeres.live.server import TryServer
from edgeres.live.side_by_side import SideBySide

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent / "tests"))
WIDTH = 900


def take(bundle: Path, photographs: list[Path]) -> None:
    """Write both pictures."""
    from browser import browser

    with (
        tempfile.TemporaryDirectory() as profile,
        SideBySide(bundle) as both,
        TryServer(both, 0) as server,
        browser(Path(profile)) as tab,
    ):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        tab.show(WIDTH, 760)
        tab.open((bundle / "report.html").resolve().as_uri())
        keep("report.png", tab.picture(), 760)
        tab.open(server.url)
        tab.choose("#files", *photographs)
        tab.wait_for(f"document.querySelectorAll('#answers .answer').length === {len(photographs)}")
        keep("try.png", tab.picture(), None)
        server.shutdown()


def keep(name: str, png: bytes, height: int | None) -> None:
    """Write the upper part of a picture with 128 colours, which look the same and take a third."""
    picture = Image.open(BytesIO(png)).convert("RGB")
    picture = picture.crop((0, 0, picture.width, height or picture.height))
    picture.quantize(128, dither=Image.Dither.NONE).save(DOCS / name, optimize=True)


if __name__ == "__main__":
    take(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]])
