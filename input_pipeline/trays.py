"""Draws beetles on trays: body, elytra, wings spread on some, pins, legs, a scale bar, clutter.

A picture is a pure function of its seed. The ends of the two lines can be seen: length from the
base of the elytra (where the pronotum meets them, at the suture) to their tip, width between their
widest points.
"""

import dataclasses
import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw

FINE = 3  # a tray is drawn so many times finer, then averaged
PER_TRAY = (3, 2)  # specimens across and down
WIDEST = 0.45  # where the elytra are widest, of their length

Colour = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class Beetle:
    """One specimen, in pixels of its tray.

    Attributes:
      base: (x, y) where the suture meets the pronotum.
      angle: radians, of the suture from base to tip.
      length: px, of the elytra.
      slim: their width over their length.
      spread: radians by which each elytron is turned outwards, 0 = closed.
      colour: of the elytra, RGB.
    """

    base: tuple[float, float]
    angle: float
    length: float
    slim: float
    spread: float
    colour: Colour

    def at(self, along, across) -> np.ndarray:
        """Maps body coordinates (lengths of the elytra) to pixels [..., 2]."""
        c, s = math.cos(self.angle), math.sin(self.angle)
        along, across = np.asarray(along) * self.length, np.asarray(across) * self.length
        x, y = self.base
        return np.stack([x + along * c - across * s, y + along * s + across * c], axis=-1)

    def elytron(self, side: int, along, across) -> np.ndarray:
        """Maps coordinates of one elytron (side -1 or 1), turned about the base, to pixels."""
        c, s = math.cos(self.spread), math.sin(self.spread) * side
        along, across = np.asarray(along), np.asarray(across) * side
        return self.at(along * c - across * s, along * s + across * c)

    def outline(self, along) -> np.ndarray:
        """Returns half the width of the elytra at places from 0 (base) to 1 (tip)."""
        front = 0.72 + 0.28 * np.sin(np.pi / 2 * np.clip(along / WIDEST, 0, 1))
        back = np.sqrt(1 - (np.clip(along - WIDEST, 0, None) / (1 - WIDEST)) ** 2)
        return self.slim / 2 * np.where(along < WIDEST, front, back)

    @property
    def width_line(self) -> np.ndarray:
        """Two points, or four where the wings are spread: outer, inner, inner, outer."""
        half = self.slim / 2
        outer, inner = ([self.elytron(s, WIDEST, v) for s in (-1, 1)] for v in (half, 0.0))
        if not self.spread:
            return np.stack(outer)
        return np.stack([outer[0], inner[0], inner[1], outer[1]])

    @property
    def length_line(self) -> np.ndarray:
        """Two points: base and tip, of one elytron where the wings are spread."""
        return np.stack([self.at(0, 0), self.elytron(-1, 1, 0)])

    @property
    def pronotum_line(self) -> np.ndarray:
        """Two points, where the pronotum meets the elytra."""
        return np.stack([self.at(-0.06, side * 0.34 * self.slim) for side in (-1, 1)])


def _fine(points: ArrayLike) -> list[tuple[float, float]]:
    """Pixel centres are whole numbers in both pictures."""
    return [tuple(p) for p in (np.asarray(points).reshape(-1, 2) + 0.5) * FINE - 0.5]


def _disc(draw: ImageDraw.ImageDraw, beetle: Beetle, along, across, size, fill) -> None:
    turn = np.linspace(0, 2 * np.pi, 24)
    draw.polygon(
        _fine(beetle.at(along + size[0] * np.cos(turn), across + size[1] * np.sin(turn))), fill=fill
    )


def _shade(colour: Iterable[float], factor: float) -> Colour:
    red, green, blue = (int(min(255, max(0, channel * factor))) for channel in colour)
    return red, green, blue


def draw_beetle(draw: ImageDraw.ImageDraw, beetle: Beetle, pinned: bool) -> None:
    """Draws one specimen, from the legs up to the pin."""
    dark, stroke = _shade(beetle.colour, 0.55), FINE * max(1, round(beetle.length / 45))
    for side in (-1, 1):
        for start, knee, foot in ((-0.2, -0.35, -0.5), (0.1, 0.15, 0.35), (0.3, 0.5, 0.95)):
            leg = beetle.at([start, knee, foot], [side * 0.1, side * 0.52, side * 0.6])
            draw.line(_fine(leg), fill=dark, width=stroke)
        antenna = beetle.at([-0.5, -0.62, -0.6], [side * 0.04, side * 0.25, side * 0.45])
        draw.line(_fine(antenna), fill=dark, width=max(1, stroke // 2))
    _disc(draw, beetle, -0.46, 0.0, (0.13, 0.3 * beetle.slim), dark)
    if beetle.spread:
        _disc(draw, beetle, 0.35, 0.0, (0.42, 0.3 * beetle.slim), _shade(beetle.colour, 0.4))
    pronotum = np.array([[-0.36, 0.24], [-0.2, 0.4], [-0.06, 0.34], [-0.03, 0.3]])
    ring = [(a, w * beetle.slim) for a, w in pronotum]
    ring += [(a, -w * beetle.slim) for a, w in pronotum[::-1]]
    draw.polygon(_fine(beetle.at(*np.array(ring).T)), fill=_shade(beetle.colour, 0.75))
    along = np.sin(np.linspace(0, np.pi / 2, 30)) ** 2
    half = beetle.outline(along)
    for side in (-1, 1):
        edge = np.concatenate([beetle.elytron(side, along, half), beetle.elytron(side, [1, 0], 0)])
        draw.polygon(_fine(edge), fill=beetle.colour)
        for share in (0.35, 0.7):
            stria = beetle.elytron(side, along[3:-3], share * half[3:-3])
            draw.line(_fine(stria), fill=_shade(beetle.colour, 0.8), width=max(1, stroke // 3))
        suture = beetle.elytron(side, [0, 1], 0)
        draw.line(_fine(suture), fill=dark, width=max(1, stroke // 2))
    if pinned:
        _disc(draw, beetle, 0.2, 0.12, (0.05, 0.05), (150, 150, 155))
        _disc(draw, beetle, 0.19, 0.11, (0.02, 0.02), (240, 240, 240))


def _clutter(draw: ImageDraw.ImageDraw, rng: np.random.Generator, size: tuple[int, int]) -> None:
    """Puts labels, specks and fibres on the paper, below the specimens."""
    width, height = size
    for _ in range(width * height // 9000):
        x, y = rng.uniform((0, 0), (width, height))
        r = rng.uniform(0.4, 1.6)
        grey = int(rng.uniform(60, 190))
        draw.ellipse(_fine([[x - r, y - r], [x + r, y + r]]), fill=(grey, grey, grey))
    for _ in range(width * height // 15000):
        a = rng.uniform((0, 0), (width, height))
        b = a + rng.normal(0, 14, 2)
        draw.line(_fine([a, b]), fill=(150, 140, 130), width=FINE // 2)
    for _ in range(width * height // 40000):
        a = rng.uniform((0, 0), (width - 30, height - 14))
        draw.rectangle(_fine([a, a + np.array([30, 14])]), fill=(246, 246, 240))
        for line in range(3):
            text = a + np.array([[3, 3 + 4 * line], [rng.uniform(12, 27), 3 + 4 * line]])
            draw.line(_fine(text), fill=(90, 90, 100), width=FINE)


@dataclasses.dataclass(frozen=True)
class Tray:
    """A group picture.

    Attributes:
      pixels: [H, W, 3] uint8.
      beetles: its specimens.
      crops: (left, top, width, height) of each individual picture, whole pixels.
      bar: [2, 2] (x, y), the ends of the centimetre.
    """

    pixels: np.ndarray
    beetles: list[Beetle]
    crops: list[tuple[int, int, int, int]]
    bar: np.ndarray

    def crop(self, i: int) -> np.ndarray:
        """The pixels of an individual picture."""
        left, top, width, height = self.crops[i]
        return self.pixels[top : top + height, left : left + width]

    def inside(self, i: int, points: np.ndarray) -> np.ndarray:
        """Moves points of the tray into an individual picture."""
        return points - np.array(self.crops[i][:2])


def draw_tray(seed, looks: list[int], cell: int, px_per_cm: float, spread: set[int]) -> Tray:
    """Draws a tray.

    Args:
      seed: of the picture.
      looks: for each specimen the number of its species, which gives shape and colour.
      cell: px, the room of one specimen.
      px_per_cm: of the scale bar.
      spread: the places whose wings are spread.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    size = (PER_TRAY[0] * cell, PER_TRAY[1] * cell + 30)
    paper = _shade((228, 222, 208), rng.uniform(0.85, 1.08))
    image = Image.new("RGB", (size[0] * FINE, size[1] * FINE), paper)
    draw = ImageDraw.Draw(image)
    _clutter(draw, rng, size)
    beetles, crops = [], []
    for place, look in enumerate(looks):
        centre = (np.array(divmod(place, PER_TRAY[0]))[::-1] + 0.5) * cell + rng.uniform(-4, 4, 2)
        own = np.random.Generator(np.random.PCG64([7, look]))
        length = cell * rng.uniform(0.33, 0.45)
        angle = rng.uniform(0, 2 * np.pi) if rng.random() < 0.2 else rng.normal(np.pi / 2, 0.35)
        to_base = 0.18 * length * np.array([math.cos(angle), math.sin(angle)])
        beetle = Beetle(
            base=tuple(centre - to_base),
            angle=angle,
            length=length,
            slim=own.uniform(0.55, 0.72) * rng.uniform(0.97, 1.03),
            spread=rng.uniform(0.2, 0.4) if place in spread else 0.0,
            colour=_shade(own.uniform((60, 35, 20), (125, 85, 60)), rng.uniform(0.85, 1.15)),
        )
        draw_beetle(draw, beetle, pinned=bool(rng.random() < 0.6))
        beetles.append(beetle)
        width, height = (int(cell * rng.uniform(0.9, 1.0)) for _ in range(2))
        corner = np.clip(centre - (width / 2, height / 2), 0, np.array(size) - (width, height))
        crops.append((int(corner[0]), int(corner[1]), width, height))
    bar = np.array([[8.0, size[1] - 12.0], [8.0 + px_per_cm, size[1] - 12.0]])
    draw.line(_fine(bar), fill=(10, 10, 10), width=3 * FINE)
    tick = np.array([[0, -6], [0, 6]])
    for end in bar:
        draw.line(_fine(end + tick), fill=(10, 10, 10), width=FINE)
    drawn = np.asarray(image.reduce(FINE)).astype(np.int16)
    light = rng.uniform(-12, 12) * np.linspace(-1, 1, size[0])[None, :, None]
    pixels = drawn + light + rng.normal(0, 3, (*drawn.shape[:2], 1))
    return Tray(np.rint(pixels).clip(0, 255).astype(np.uint8), beetles, crops, bar)
