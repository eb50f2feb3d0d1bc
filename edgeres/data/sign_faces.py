"""The sign faces of the demo set as coloured polygons, drawn from scratch: no fonts, no image files.

A face lies in the square [-1, 1] x [-1, 1], x to the right and y down. It is a list of polygons painted in order, which
are exact in any perspective and sharp at every resolution.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np
import numpy.typing as npt

Points = npt.NDArray[np.float64]
Rgb = tuple[int, int, int]

WHITE, BLACK, RED, BLUE = (240, 240, 236), (24, 24, 26), (196, 24, 34), (14, 78, 158)
YELLOW, GREEN, GREY = (246, 196, 16), (0, 124, 74), (146, 150, 154)


@dataclass(frozen=True)
class Part:
    """A filled polygon: vertices (K, 2), colour."""

    points: Points
    rgb: Rgb


@dataclass(frozen=True)
class Face:
    """One sign class.

    Attributes:
        mirrors: whether its mirror image means the same, so that it may be drawn mirrored.
    """

    name: str
    parts: tuple[Part, ...]
    mirrors: bool = False


def disc(x: float, y: float, radius: float, corners: int = 32) -> Points:
    turn = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    return np.stack([x + radius * np.cos(turn), y + radius * np.sin(turn)], axis=1)


def arc(x: float, y: float, radius: float, start: float, end: float) -> Points:
    """Points on a circle from ``start`` to ``end`` degrees, clockwise from the right (y points down)."""
    turn = np.radians(np.linspace(start, end, 12))
    return np.stack([x + radius * np.cos(turn), y + radius * np.sin(turn)], axis=1)


def box(left: float, top: float, right: float, bottom: float) -> Points:
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)])


def rounded(corners: Points, radius: float) -> Points:
    """A convex polygon (clockwise on the screen) widened by ``radius`` with round corners."""
    edges = np.roll(corners, -1, axis=0) - corners
    leaving = np.arctan2(-edges[:, 0], edges[:, 1])  # outward normal of the edge that leaves each corner
    arriving = np.roll(leaving, 1)
    turn = (leaving - arriving) % (2 * np.pi)
    angle = arriving[:, None] + turn[:, None] * np.linspace(0, 1, 6)
    return (corners[:, None] + radius * np.stack([np.cos(angle), np.sin(angle)], axis=-1)).reshape(-1, 2)


def regular(corners: int, radius: float, degrees: float) -> Points:
    """A regular polygon whose first corner points to ``degrees``."""
    turn = np.radians(degrees) + 2 * np.pi * np.arange(corners) / corners
    return radius * np.stack([np.cos(turn), np.sin(turn)], axis=1)


def line(points: Points | list[tuple[float, float]], width: float) -> list[Points]:
    """A polyline of some width: one bar per segment, with round joints and ends."""
    vertices = np.asarray(points, dtype=np.float64)
    vertices = vertices[np.append(True, np.any(np.abs(np.diff(vertices, axis=0)) > 1e-9, axis=1))]
    bars = [disc(x, y, width / 2, 10) for x, y in vertices]
    for a, b in pairwise(vertices):
        along = (b - a) / np.hypot(*(b - a)) * width / 2
        across = np.array([-along[1], along[0]])
        bars.append(np.array([a + across, b + across, b - across, a - across]))
    return bars


def painted(rgb: Rgb, *shapes: Points | list[Points]) -> list[Part]:
    return [Part(p, rgb) for shape in shapes for p in (shape if isinstance(shape, list) else [shape])]


def stacked(*layers: tuple[Rgb, Points | list[Points]]) -> list[Part]:
    """Shapes in their colours, each painted over those before it."""
    return [part for rgb, shape in layers for part in painted(rgb, shape)]


def moved(parts: list[Part], x: float, y: float, scale: float = 1.0) -> list[Part]:
    return [Part(p.points * scale + (x, y), p.rgb) for p in parts]


def walker(rgb: Rgb) -> list[Part]:
    """A walking person, about 1 high and centred."""
    return painted(
        rgb,
        disc(0.03, -0.43, 0.105, 16),
        line([(0.0, -0.22), (-0.02, 0.08)], 0.2),
        line([(0.02, -0.24), (0.2, -0.06), (0.28, 0.05)], 0.075),
        line([(-0.03, -0.24), (-0.2, -0.1), (-0.22, 0.06)], 0.075),
        line([(0.02, 0.08), (0.14, 0.28), (0.24, 0.5)], 0.1),
        line([(-0.03, 0.08), (-0.1, 0.3), (-0.26, 0.48)], 0.1),
    )


def forklift(rgb: Rgb, hole: Rgb) -> list[Part]:
    """A fork truck with a load, about 1 wide and centred; ``hole`` is the colour behind it."""
    return [
        *painted(rgb, np.array([(-0.5, 0.0), (-0.2, -0.02), (-0.12, 0.12), (0.14, 0.12), (0.14, 0.32), (-0.5, 0.32)])),
        *painted(rgb, line([(-0.36, 0.0), (-0.3, -0.36), (0.02, -0.36), (0.12, 0.14)], 0.06)),
        *painted(rgb, disc(-0.2, -0.17, 0.075, 12), line([(-0.21, -0.08), (-0.24, 0.06), (-0.06, 0.1)], 0.09)),
        *painted(rgb, line([(0.2, -0.42), (0.2, 0.36)], 0.06), line([(0.2, 0.36), (0.52, 0.36)], 0.05)),
        *painted(rgb, box(0.27, 0.04, 0.52, 0.31)),
        *painted(rgb, disc(-0.33, 0.34, 0.13, 16), disc(0.04, 0.34, 0.13, 16)),
        *painted(hole, disc(-0.33, 0.34, 0.055, 10), disc(0.04, 0.34, 0.055, 10)),
    ]


def runner(rgb: Rgb) -> list[Part]:
    """A person running to the right, about 1 high and centred."""
    return painted(
        rgb,
        disc(0.14, -0.42, 0.11, 16),
        line([(0.06, -0.22), (-0.04, 0.08)], 0.19),
        line([(0.08, -0.24), (0.24, -0.1), (0.38, -0.2)], 0.075),
        line([(0.02, -0.26), (-0.2, -0.24), (-0.3, -0.06)], 0.075),
        line([(0.0, 0.08), (0.2, 0.16), (0.16, 0.44)], 0.1),
        line([(-0.06, 0.1), (-0.18, 0.3), (-0.44, 0.32)], 0.1),
    )


def arrow(rgb: Rgb, length: float, degrees: float) -> list[Part]:
    """A straight arrow through the centre, pointing to ``degrees`` (clockwise from the right)."""
    tip = length / 2
    shaft = box(-tip, -0.13, tip - 0.3, 0.13)
    head = np.array([(tip, 0.0), (tip - 0.46, -0.4), (tip - 0.46, 0.4)])
    a = np.radians(degrees)
    turn = np.array([(np.cos(a), np.sin(a)), (-np.sin(a), np.cos(a))])
    return painted(rgb, shaft @ turn, head @ turn)


def digit(name: str) -> list[Points]:
    """``0``, ``3`` or ``5``, 1 high, 0.56 wide, centred, as strokes."""
    top, bottom = arc(0, -0.2, 0.21, 210, 450), arc(0, 0.19, 0.23, 270, 510)
    strokes = {
        "0": [np.concatenate([arc(0, -0.19, 0.22, 180, 360), arc(0, 0.19, 0.22, 0, 180), [(-0.22, -0.19)]])],
        "3": [top, bottom],
        "5": [np.array([(0.2, -0.41), (-0.17, -0.41), (-0.19, -0.03)]), arc(-0.01, 0.18, 0.24, 220, 520)],
    }
    return [bar for points in strokes[name] for bar in line(points, 0.16)]


def letters_stop() -> list[Points]:
    """The word STOP, about 1.3 wide and 0.5 high, centred."""
    s = np.concatenate([arc(-0.5, -0.11, 0.11, 330, 90), arc(-0.5, 0.11, 0.11, 270, 510)])
    t = [np.array([(-0.29, -0.22), (-0.03, -0.22)]), np.array([(-0.16, -0.22), (-0.16, 0.24)])]
    o = np.concatenate([arc(0.17, -0.1, 0.12, 180, 360), arc(0.17, 0.1, 0.12, 0, 180), [(0.05, -0.1)]])
    p = [
        np.array([(0.43, 0.24), (0.43, -0.22)]),
        np.concatenate([[(0.43, -0.22)], arc(0.53, -0.1, 0.12, 270, 450), [(0.43, 0.02)]]),
    ]
    return [bar for points in [s, *t, o, *p] for bar in line(points, 0.1)]


def prohibition(name: str, content: list[Part], *, slash: bool, mirrors: bool = False) -> Face:
    """White disc with a red ring; the slash runs from the upper left to the lower right."""
    plate = stacked((WHITE, disc(0, 0, 1.0)), (RED, disc(0, 0, 0.96)), (WHITE, disc(0, 0, 0.74)))
    bar = painted(RED, line([(-0.58, -0.58), (0.58, 0.58)], 0.17)) if slash else []
    return Face(name, (*plate, *content, *bar), mirrors)


def warning(name: str, content: list[Part], *, mirrors: bool = False) -> Face:
    """Yellow triangle with a black border."""
    plate = stacked((BLACK, rounded(regular(3, 0.96, -90), 0.1)), (YELLOW, rounded(regular(3, 0.78, -90), 0.08)))
    return Face(name, (*moved(plate, 0, 0.22), *moved(content, 0, 0.21, 0.8)), mirrors)


def clearway(name: str, *bars: list[tuple[float, float]]) -> Face:
    """Blue disc with a red ring and red bars: no stopping has two, no parking one."""
    plate = stacked((WHITE, disc(0, 0, 1.0)), (RED, disc(0, 0, 0.97)), (BLUE, disc(0, 0, 0.77)))
    return Face(name, (*plate, *painted(RED, *(line(bar, 0.19) for bar in bars))))


def mandatory(name: str, degrees: float) -> Face:
    """Blue disc with a white arrow."""
    return Face(name, (*painted(WHITE, disc(0, 0, 1.0)), *painted(BLUE, disc(0, 0, 0.95)), *arrow(WHITE, 1.4, degrees)))


def speed(limit: str) -> Face:
    left, right = (moved(painted(BLACK, digit(name)), x, 0, 0.88) for name, x in zip(limit, (-0.29, 0.29), strict=True))
    return prohibition(f"speed_{limit}", [*left, *right], slash=False)


def exit_to(side: str) -> Face:
    """Green board with a runner, a door and an arrow, all to one side."""
    rim, board = rounded(box(-0.94, -0.62, 0.94, 0.62), 0.06), rounded(box(-0.9, -0.58, 0.9, 0.58), 0.05)
    plate = stacked((WHITE, rim), (GREEN, board), (WHITE, box(-0.84, -0.5, -0.3, 0.5)))
    parts = [*plate, *moved(runner(GREEN), -0.52, 0.02, 0.86), *moved(arrow(WHITE, 1.3, 0), 0.34, 0, 0.72)]
    flip = -1 if side == "left" else 1
    return Face(f"exit_{side}", tuple(Part(p.points * (flip, 1), p.rgb) for p in parts))


@cache
def faces() -> tuple[Face, ...]:
    """All sign classes in label order; classes that are easily confused are neighbours."""
    stop = stacked((WHITE, regular(8, 1.0, 22.5)), (RED, regular(8, 0.93, 22.5)), (WHITE, letters_stop()))
    triangles = ((WHITE, 0.92, 0.1), (RED, 0.88, 0.08), (WHITE, 0.48, 0.05))
    give_way = stacked(*((rgb, rounded(regular(3, radius, 90), corner)) for rgb, radius, corner in triangles))
    no_entry = stacked((WHITE, disc(0, 0, 1.0)), (RED, disc(0, 0, 0.95)), (WHITE, box(-0.7, -0.17, 0.7, 0.17)))
    bolt = np.array([(0.12, -0.52), (-0.22, 0.06), (0.0, 0.06), (-0.1, 0.5), (0.24, -0.12), (0.02, -0.12)])
    return (
        Face("stop", tuple(stop)),
        Face("no_entry", tuple(no_entry), mirrors=True),
        Face("give_way", tuple(moved(give_way, 0, -0.22)), mirrors=True),
        warning("high_voltage", painted(BLACK, bolt)),
        warning("pedestrians", walker(BLACK), mirrors=True),
        warning("forklifts", forklift(BLACK, YELLOW), mirrors=True),
        prohibition("no_pedestrians", walker(BLACK), slash=True, mirrors=True),
        prohibition("no_forklifts", forklift(BLACK, WHITE), slash=True, mirrors=True),
        speed("30"),
        speed("50"),
        clearway("no_stopping", [(-0.55, -0.55), (0.55, 0.55)], [(-0.55, 0.55), (0.55, -0.55)]),
        clearway("no_parking", [(-0.55, -0.55), (0.55, 0.55)]),
        mandatory("keep_left", 135),
        mandatory("keep_right", 45),
        exit_to("left"),
        exit_to("right"),
    )
