"""The scenes of the demo set: surroundings, a sign in some pose and condition, and objects in front of it.

Everything is a polygon in unit coordinates, x to the right and y down, painted back to front. All random numbers come
from one generator in a fixed order, independent of the resolution, so an image has the same composition at every size.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from PIL import Image, ImageDraw

from edgeres.data.sign_faces import Face, Points, Rgb, box, disc, line
from edgeres.records import F32

Rng = np.random.Generator


@dataclass(frozen=True)
class Pose:
    """Where a sign hangs: centre and radius in image widths, and its orientation towards the camera."""

    x: float
    y: float
    radius: float
    turn: Points  # rotation, (3, 3)

    def project(self, points: Points) -> Points:
        """Points (K, 2) of the sign's plane -> image, by a pinhole camera three radii away."""
        spatial = points @ self.turn[:2]  # (K, 3)
        depth = 3.0 / (3.0 + spatial[:, 2:])
        return np.array([self.x, self.y]) + self.radius * depth * spatial[:, :2]


class Canvas:
    """Paints polygons given in unit coordinates onto a square image."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.image = Image.new("RGB", (size, size))
        self.draw = ImageDraw.Draw(self.image, "RGBA")  # this mode blends by alpha

    def backdrop(self, small: F32) -> None:
        """Fill with an image of any size, (H, W, 3) in 0 .. 255, smoothly enlarged."""
        pixels = Image.fromarray(np.clip(small, 0, 255).astype(np.uint8))
        self.image.paste(pixels.resize((self.size, self.size), Image.Resampling.BICUBIC))

    def polygon(self, points: Points, rgb: Rgb, alpha: float = 1.0) -> None:
        self.draw.polygon((points * self.size).ravel().tolist(), fill=(*rgb, round(255 * alpha)))

    def box(self, left: float, top: float, right: float, bottom: float, rgb: Rgb) -> None:
        self.draw.rectangle([side * self.size for side in (left, top, right, bottom)], fill=rgb)

    def disc(self, x: float, y: float, radius: float, rgb: Rgb, alpha: float = 1.0) -> None:
        corners = [side * self.size for side in (x - radius, y - radius, x + radius, y + radius)]
        self.draw.ellipse(corners, fill=(*rgb, round(255 * alpha)))


def mix(a: Rgb, b: Rgb, share: float) -> Rgb:
    """``a`` with a share of ``b``."""
    red, green, blue = (round(x + (y - x) * share) for x, y in zip(a, b, strict=True))
    return red, green, blue


def near(rng: Rng, rgb: Rgb, spread: float) -> Rgb:
    """A colour like ``rgb``, lighter or darker and slightly off in hue."""
    values = np.clip(np.array(rgb) + rng.normal(0, spread) + rng.normal(0, spread / 3, 3), 0, 255)
    red, green, blue = (int(v) for v in values)
    return red, green, blue


def paint(canvas: Canvas, face: Face, rng: Rng) -> bool:
    """Paint one scene with its sign; returns whether it is outdoors."""
    outdoors = bool(rng.random() < 0.55)
    (road if outdoors else warehouse)(canvas, rng)
    pose = hang(rng)
    mount(canvas, pose, rng, outdoors=outdoors)
    for _ in range(rng.integers(0, 3)):
        litter(canvas, rng)
    draw_face(canvas, face, pose, rng)
    if rng.random() < 0.45:
        shade(canvas, pose, rng)
    if rng.random() < 0.5:
        (foliage if outdoors else parcels)(canvas, pose, rng)
    return outdoors


def ground(horizon: float, above: Rgb, below: Rgb, rng: Rng) -> F32:
    """Two mottled areas that meet at the horizon, (24, 24, 3)."""
    rows = np.linspace(0, 1, 24)
    area = np.where((rows < horizon)[:, None], above, below).astype(np.float32)
    light = 1 + 0.25 * np.where(rows < horizon, rows - horizon, 0.7 * (rows - horizon))
    mottle = rng.normal(0, 6, (24, 24, 1)) + rng.normal(0, 3, (24, 24, 3))
    return np.asarray(area[:, None] * light[:, None, None] + mottle, dtype=np.float32)


SKIES: tuple[Rgb, ...] = ((150, 190, 226), (196, 204, 210), (120, 150, 190), (226, 196, 168), (62, 70, 92))


def road(canvas: Canvas, rng: Rng) -> None:
    """Sky, houses, trees and a carriageway."""
    horizon = rng.uniform(0.4, 0.75)
    sky = near(rng, SKIES[rng.integers(len(SKIES))], 10)
    canvas.backdrop(ground(horizon, sky, near(rng, (104, 112, 92), 12), rng))
    left = rng.uniform(-0.3, 0)
    while left < 1:
        width = rng.uniform(0.12, 0.4)
        if rng.random() < 0.45:
            house(canvas, left, left + width, horizon, rng)
        else:
            tree(canvas, left + width / 2, horizon, rng)
        left += width * rng.uniform(0.6, 1.3)
    vanishing, near_left = rng.uniform(0.1, 0.9), rng.uniform(-0.9, 0.5)
    near_right = near_left + rng.uniform(0.7, 1.4)
    asphalt = np.array([(vanishing - 0.02, horizon), (vanishing + 0.02, horizon), (near_right, 1.0), (near_left, 1.0)])
    canvas.polygon(asphalt, near(rng, (84, 86, 90), 10))
    middle = (near_left + near_right) / 2
    for start in (0.08, 0.3, 0.65):
        t, d = np.array([start, start, start * 1.6, start * 1.6]), np.array([-0.02, 0.02, 0.02, -0.02])
        dash = np.stack([vanishing + (middle - vanishing) * t + d * t, horizon + (1 - horizon) * t], axis=1)
        canvas.polygon(dash, (214, 214, 206))


def house(canvas: Canvas, left: float, right: float, base: float, rng: Rng) -> None:
    top = base - rng.uniform(0.15, 0.5)
    wall = near(rng, ((168, 140, 120), (190, 186, 176), (150, 90, 72), (120, 128, 140))[rng.integers(4)], 14)
    canvas.box(left, top, right, base + 0.01, wall)
    glass, step = mix(wall, (40, 50, 64), 0.75), rng.uniform(0.05, 0.09)
    for x in np.arange(left + step / 2, right - step * 0.7, step):
        for y in np.arange(top + step / 2, base - step, step * 1.3):
            canvas.box(x, y, x + step * 0.5, y + step * 0.7, glass)


def tree(canvas: Canvas, x: float, base: float, rng: Rng) -> None:
    height, leaf = rng.uniform(0.15, 0.45), near(rng, (62, 96, 50), 14)
    canvas.box(x - 0.012, base - height * 0.6, x + 0.012, base + 0.02, (70, 56, 44))
    for dx, dy, radius in rng.uniform((-0.09, 0.4, 0.04), (0.09, 1.0, 0.1), (7, 3)):
        canvas.disc(x + dx, base - height * dy, radius, near(rng, leaf, 10))


def warehouse(canvas: Canvas, rng: Rng) -> None:
    """A wall, racks with goods, lamps and a marked floor."""
    horizon = rng.uniform(0.6, 0.85)
    wall = near(rng, ((186, 190, 190), (150, 158, 166), (206, 200, 186))[rng.integers(3)], 12)
    canvas.backdrop(ground(horizon, wall, near(rng, (128, 126, 120), 12), rng))
    left = rng.uniform(-0.3, 0.2)
    while left < 1:
        width = rng.uniform(0.25, 0.5)
        if rng.random() < 0.75:
            rack(canvas, left, left + width, horizon, rng)
        left += width + rng.uniform(0, 0.2)
    stripe = near(rng, (216, 178, 40), 14)
    x, drift = rng.uniform(0, 1), rng.uniform(-0.5, 0.5)
    canvas.polygon(np.array([(x, horizon), (x + 0.02, horizon), (x + drift + 0.08, 1), (x + drift, 1)]), stripe)
    for x in rng.uniform(0, 1, rng.integers(0, 4)):
        canvas.box(x - 0.08, 0.02, x + 0.08, 0.035, (250, 250, 240))


def rack(canvas: Canvas, left: float, right: float, base: float, rng: Rng) -> None:
    """Uprights, beams, and a row of goods on each level."""
    upright, beam = near(rng, (46, 74, 120), 14), near(rng, (206, 104, 38), 14)
    levels = np.arange(base, -0.1, -rng.uniform(0.16, 0.28))
    for low, high in pairwise(levels):
        x = left + 0.02
        while x < right - 0.06:
            width, height = rng.uniform(0.05, 0.14), rng.uniform(0.4, 0.85) * (low - high)
            goods = near(rng, ((172, 132, 88), (196, 160, 116), (90, 110, 130), (180, 60, 50))[rng.integers(4)], 16)
            canvas.box(x, low - height, min(x + width, right), low, goods)
            x += width + rng.uniform(0.005, 0.05)
        canvas.box(left, low, right, low + 0.018, beam)
    for x in (left, right):
        canvas.box(x - 0.01, 0, x + 0.01, base + 0.02, upright)


def litter(canvas: Canvas, rng: Rng) -> None:
    """An object in the colours of signs: a lamp, a poster, a reflector."""
    colours: tuple[Rgb, ...] = ((200, 30, 36), (20, 80, 160), (240, 196, 30), (236, 236, 230), (10, 120, 70))
    x, y, size = rng.uniform((-0.02, 0, 0.02), (1.02, 0.9, 0.09))
    rgb = near(rng, colours[rng.integers(len(colours))], 12)
    corners = (32, 4, 3)[rng.integers(3)]
    canvas.polygon(disc(x, y, size, corners), rgb)
    if rng.random() < 0.5:
        canvas.polygon(disc(x, y, size * 0.6, corners), near(rng, colours[rng.integers(len(colours))], 12))


def hang(rng: Rng) -> Pose:
    """A pose that keeps most of the sign inside the image."""
    radius = float(np.exp(rng.uniform(np.log(0.17), np.log(0.42))))
    margin = radius * 0.9
    x, y = rng.uniform(margin, 1 - margin, 2)
    yaw, pitch, roll = np.radians(rng.normal(0, (24, 12, 7))).clip(-1.0, 1.0)
    cy, sy, cp, sp, cr, sr = *_cos_sin(yaw), *_cos_sin(pitch), *_cos_sin(roll)
    about_y = np.array([(cy, 0, sy), (0, 1, 0), (-sy, 0, cy)])
    about_x = np.array([(1, 0, 0), (0, cp, sp), (0, -sp, cp)])
    about_z = np.array([(cr, sr, 0), (-sr, cr, 0), (0, 0, 1)])
    return Pose(float(x), float(y), radius, about_z @ about_x @ about_y)


def _cos_sin(angle: float) -> tuple[float, float]:
    return float(np.cos(angle)), float(np.sin(angle))


def mount(canvas: Canvas, pose: Pose, rng: Rng, *, outdoors: bool) -> None:
    """The mounting of the sign: a pole or cables from the ceiling, sometimes with a small plate below."""
    metal = near(rng, (132, 136, 140), 14)
    if outdoors or rng.random() < 0.4:
        width = pose.radius * rng.uniform(0.04, 0.09)
        canvas.box(pose.x - width, pose.y, pose.x + width, 1.0, metal)
        canvas.box(pose.x - width, pose.y, pose.x - width * 0.4, 1.0, mix(metal, (255, 255, 255), 0.35))
    else:
        for side in (-0.6, 0.6):
            (cable,) = pose.project(np.array([(side, 0.0)]))
            canvas.box(cable[0] - 0.004, 0.0, cable[0] + 0.004, cable[1], mix(metal, (0, 0, 0), 0.4))
    if rng.random() < 0.3:
        canvas.polygon(pose.project(box(-0.75, 1.12, 0.75, 1.55)), near(rng, (232, 232, 228), 8))
        for y in (1.25, 1.42):
            for bar in line([(-0.6, y), (rng.uniform(0.0, 0.6), y)], 0.07):
                canvas.polygon(pose.project(bar), (40, 40, 44))


def draw_face(canvas: Canvas, face: Face, pose: Pose, rng: Rng) -> None:
    """The sign itself: faded, scratched, dirty, and mirrored where its meaning allows it."""
    fade, pale, tint = rng.beta(1.2, 3.0) * 0.75, near(rng, (170, 168, 162), 18), near(rng, (128, 128, 128), 12)
    flip = -1.0 if face.mirrors and rng.random() < 0.5 else 1.0
    corners = pose.project(np.concatenate([part.points for part in face.parts]) * (flip, 1.0))
    ends = np.cumsum([len(part.points) for part in face.parts])
    for part, points in zip(face.parts, np.split(corners, ends[:-1]), strict=True):
        canvas.polygon(points, mix(mix(part.rgb, tint, 0.12), pale, fade))
    for _ in range(rng.poisson(2.0)):
        x, y, size = rng.uniform((-0.8, -0.8, 0.05), (0.8, 0.8, 0.3))
        blot = disc(x, y, size, 9) * (1, rng.uniform(0.4, 1.6))
        canvas.polygon(pose.project(blot), near(rng, (104, 92, 74), 16), rng.uniform(0.15, 0.6))
    if rng.random() < 0.15:
        x, y = rng.uniform(-0.6, 0.6, 2)
        canvas.polygon(pose.project(disc(x, y, rng.uniform(0.12, 0.3), 4)), near(rng, (200, 200, 200), 40))


def shade(canvas: Canvas, pose: Pose, rng: Rng) -> None:
    """The edge of a shadow across the sign, or a reflection on it."""
    angle = rng.uniform(0, 2 * np.pi)
    along, across = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])
    middle = np.array([pose.x, pose.y]) + along * pose.radius * rng.uniform(-0.6, 0.6)
    if rng.random() < 0.65:
        dark = middle + 2 * np.array([-across, across, across + along, along - across])
        canvas.polygon(dark, (10, 12, 24), rng.uniform(0.3, 0.65))
    else:
        size = pose.radius * rng.uniform(0.4, 1.0)
        for ring in np.linspace(1, 0.2, 8):
            canvas.disc(float(middle[0]), float(middle[1]), size * float(ring), (255, 252, 240), 0.16)


def foliage(canvas: Canvas, pose: Pose, rng: Rng) -> None:
    """A twig with leaves in front of the sign, or another pole."""
    if rng.random() < 0.35:
        x, width = pose.x + pose.radius * rng.uniform(-0.8, 0.8), pose.radius * rng.uniform(0.05, 0.16)
        canvas.box(x - width, 0, x + width, 1, near(rng, (96, 98, 100), 20))
        return
    angle, reach = rng.uniform(0, 2 * np.pi), rng.uniform(0.35, 1.0)
    towards = np.array([np.cos(angle), np.sin(angle)]) * pose.radius
    root, tip = np.array([pose.x, pose.y]) + 1.7 * towards, np.array([pose.x, pose.y]) + reach * towards * 0.9
    leaf = near(rng, (58, 92, 44), 14)
    for t in rng.uniform(0, 1, rng.integers(10, 26)):
        x, y = root + (tip - root) * t + rng.normal(0, 0.2 * pose.radius, 2)
        petal = disc(0, 0, 1, 8) * (pose.radius * rng.uniform(0.08, 0.17), pose.radius * 0.06)
        c, s = _cos_sin(rng.uniform(0, np.pi))
        canvas.polygon(petal @ np.array([(c, s), (-s, c)]) + (x, y), near(rng, leaf, 14))


def parcels(canvas: Canvas, pose: Pose, rng: Rng) -> None:
    """A stack of boxes or a strut in front of the sign."""
    if rng.random() < 0.4:
        x, width = pose.x + pose.radius * rng.uniform(-0.8, 0.8), pose.radius * rng.uniform(0.05, 0.15)
        lean = rng.normal(0, 0.3)
        strut = np.array([(x - width - lean, 0), (x + width - lean, 0), (x + width + lean, 1), (x - width + lean, 1)])
        canvas.polygon(strut, near(rng, (200, 110, 40), 24))
        return
    side = rng.choice((-1.0, 1.0))
    edge, top = pose.x + side * pose.radius * rng.uniform(0.25, 0.9), pose.y + pose.radius * rng.uniform(-0.3, 0.8)
    while top < 1:
        height, rgb = rng.uniform(0.1, 0.25), near(rng, (176, 136, 92), 16)
        far = edge + side * rng.uniform(0.2, 0.5)
        canvas.box(min(edge, far), top, max(edge, far), top + height, rgb)
        canvas.box(min(edge, far), top, max(edge, far), top + 0.012, mix(rgb, (60, 40, 20), 0.4))
        edge, top = edge - side * rng.uniform(0, 0.04), top + height
