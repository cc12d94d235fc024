"""Generated scenes: what the demo model learns from, and what the sample project shows.

A scene is data: `render` draws it, `describe` says it in words. Coordinates and diameters are
fractions of the scene's square, (0, 0) at its top left. Everything random comes from the caller's
generator, so a seed fixes a scene, its picture and its caption.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import cos, pi, sin
from typing import TypeVar

import numpy as np
from PIL import Image, ImageDraw

Rgb = tuple[int, int, int]
Point = tuple[float, float]
T = TypeVar("T")

COLOURS: dict[str, Rgb] = {
    "red": (222, 45, 38),
    "orange": (250, 140, 20),
    "yellow": (250, 212, 40),
    "green": (46, 150, 68),
    "blue": (40, 100, 225),
    "purple": (128, 60, 170),
    "pink": (245, 130, 185),
    "brown": (130, 80, 45),
}
BACKGROUNDS: dict[str, Rgb] = {
    "white": (252, 252, 250),
    "cream": (250, 236, 200),
    "mint": (200, 240, 215),
    "sky": (190, 225, 250),
    "lavender": (222, 208, 246),
    "grey": (176, 178, 182),
    "navy": (30, 40, 84),
    "black": (22, 22, 24),
}
SIZES: dict[str, float] = {"small": 0.24, "medium": 0.31, "large": 0.38}
TEXTURES = ("plain", "striped", "dotted")
PLACES: dict[str, Point] = {
    "top left": (0.26, 0.26),
    "top right": (0.74, 0.26),
    "bottom left": (0.26, 0.74),
    "bottom right": (0.74, 0.74),
    "middle": (0.5, 0.5),
}
_SUPERSAMPLE = 3
_SHADOW = 0.012
_REPEATS = 0.15
_JITTER = 0.04  # keeps a large object inside its quarter


def _circle(radius: float, x: float = 0.0, y: float = 0.0) -> list[Point]:
    angles = [2 * pi * i / 72 for i in range(72)]
    return [(x + radius * cos(a), y + radius * sin(a)) for a in angles]


def _star() -> list[Point]:
    radii = [0.54 if i % 2 == 0 else 0.23 for i in range(10)]
    return [(r * sin(pi * i / 5), 0.03 - r * cos(pi * i / 5)) for i, r in enumerate(radii)]


def _heart() -> list[Point]:
    turns = [2 * pi * i / 72 for i in range(72)]
    ys = [-(13 * cos(t) - 5 * cos(2 * t) - 2 * cos(3 * t) - cos(4 * t)) / 30 - 0.04 for t in turns]
    return [(sin(t) ** 3 / 2, y) for t, y in zip(turns, ys, strict=True)]


def _cross() -> list[Point]:
    arm = [(-0.17, -0.17), (-0.17, -0.5), (0.17, -0.5)]
    right, bottom = [(-y, x) for x, y in arm], [(-x, -y) for x, y in arm]
    return arm + right + bottom + [(y, -x) for x, y in arm]


# An outline around (0, 0), about one unit wide, and the hole cut out of it (perhaps none).
SHAPES: dict[str, tuple[list[Point], list[Point]]] = {
    "circle": (_circle(0.5), []),
    "square": ([(-0.44, -0.44), (0.44, -0.44), (0.44, 0.44), (-0.44, 0.44)], []),
    "triangle": ([(0.0, -0.48), (0.52, 0.44), (-0.52, 0.44)], []),
    "star": (_star(), []),
    "heart": (_heart(), []),
    "cross": (_cross(), []),
    "ring": (_circle(0.5), _circle(0.26)),
    "moon": (_circle(0.5), _circle(0.42, 0.26, -0.1)),
}

_PLURALS = {shape: "crosses" if shape == "cross" else f"{shape}s" for shape in SHAPES}
_NUMBERS = {2: "two", 3: "three", 4: "four"}

Pair = tuple[str, str]  # colour, shape
PAIRS: tuple[Pair, ...] = tuple((colour, shape) for colour in COLOURS for shape in SHAPES)
# Never seen in training: they show how far the model puts known words together anew.
HELD_OUT_PAIRS: tuple[Pair, ...] = (
    ("red", "moon"),
    ("orange", "cross"),
    ("yellow", "heart"),
    ("green", "triangle"),
    ("blue", "ring"),
    ("pink", "star"),
)
SEEN_PAIRS: tuple[Pair, ...] = tuple(pair for pair in PAIRS if pair not in HELD_OUT_PAIRS)


@dataclass(frozen=True)
class SceneObject:
    """One drawn shape. x, y: its centre, a little off the point that `place` names."""

    colour: str
    shape: str
    size: str
    texture: str
    place: str
    x: float
    y: float


@dataclass(frozen=True)
class Scene:
    """One to four objects, no two in the same place, on a background."""

    background: str
    objects: tuple[SceneObject, ...]


def _choose(rng: np.random.Generator, options: Sequence[T]) -> T:
    return options[int(rng.integers(len(options)))]


def _make_object(rng: np.random.Generator, pair: Pair, place: str) -> SceneObject:
    x, y = PLACES[place] + rng.uniform(-_JITTER, _JITTER, 2)
    size, texture = _choose(rng, tuple(SIZES)), _choose(rng, TEXTURES)
    return SceneObject(*pair, size, texture, place, round(float(x), 3), round(float(y), 3))


def make_scene(
    rng: np.random.Generator, pairs: Sequence[Pair] = SEEN_PAIRS, most: int = 4
) -> Scene:
    """A random scene of one to `most` (up to 4) objects of these pairs; at times a pair repeats."""
    count = int(rng.integers(1, most + 1))
    corners = [str(corner) for corner in rng.permutation([p for p in PLACES if p != "middle"])]
    places = [_choose(rng, tuple(PLACES))] if count == 1 else corners[:count]
    chosen: list[Pair] = []
    for _ in places:
        repeat = bool(chosen) and rng.random() < _REPEATS
        chosen.append(chosen[-1] if repeat else _choose(rng, pairs))
    objects = (_make_object(rng, pair, place) for pair, place in zip(chosen, places, strict=True))
    return Scene(_choose(rng, tuple(BACKGROUNDS)), tuple(objects))


def render(scene: Scene, width: int, height: int) -> Image.Image:
    """The scene as an RGB picture, in pixels; its square fills the middle of a longer picture."""
    fine_width, fine_height = width * _SUPERSAMPLE, height * _SUPERSAMPLE
    side = min(fine_width, fine_height)
    left, top = (fine_width - side) // 2, (fine_height - side) // 2
    background = BACKGROUNDS[scene.background]
    canvas = Image.new("RGB", (fine_width, fine_height), background)
    for item in scene.objects:
        mask = _mask(item.shape, round(SIZES[item.size] * side))
        x = left + round(item.x * side) - mask.width // 2
        y = top + round(item.y * side) - mask.height // 2
        shift = round(_SHADOW * side)
        canvas.paste(_mix(background, (0, 0, 0), 0.2), (x + shift, y + shift), mask)
        canvas.paste(_fill(COLOURS[item.colour], item.texture, mask.width, side), (x, y), mask)
    return canvas.resize((width, height), Image.Resampling.BOX)


def _mix(colour: Rgb, other: Rgb, share: float) -> Rgb:
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(colour, other, strict=True))
    return red, green, blue


def _mask(shape: str, diameter: int) -> Image.Image:
    side = round(diameter * 1.1)  # a star and a triangle reach a little over their diameter
    outline, hole = (
        [(side / 2 + x * diameter, side / 2 + y * diameter) for x, y in points]
        for points in SHAPES[shape]
    )
    mask = Image.new("L", (side, side))
    draw = ImageDraw.Draw(mask)
    draw.polygon(outline, fill=255)
    if hole:
        draw.polygon(hole, fill=0)
    return mask


def _fill(colour: Rgb, texture: str, width: int, side: int) -> Image.Image:
    """A square of the colour, `width` pixels wide, patterned to the scale of the scene's side."""
    tile = Image.new("RGB", (width, width), colour)
    draw, light, step = ImageDraw.Draw(tile), _mix(colour, (255, 255, 255), 0.7), 0.08 * side
    lines = [(i + 0.5) * step for i in range(int(width / step) + 1)]
    if texture == "striped":
        for y in lines:
            draw.rectangle((0, y, width, y + 0.4 * step), fill=light)
    elif texture == "dotted":
        for x, y in product(lines, lines):
            draw.circle((x, y), 0.27 * step, fill=light)
    return tile


def mention(item: SceneObject, rng: np.random.Generator) -> dict[str, str]:
    """What a speaker says of an object: mostly its colour and shape, at times the rest.

    The keys are fields of `SceneObject`; never empty.
    """
    size = 0.0 if item.size == "medium" else 0.25
    texture = 0.1 if item.texture == "plain" else 0.4
    odds = {"colour": 0.95, "shape": 0.95, "size": size, "texture": texture, "place": 0.3}
    said = {field: getattr(item, field) for field, share in odds.items() if rng.random() < share}
    return said or {"shape": item.shape}


def in_words(said: Mapping[str, str], rng: np.random.Generator) -> str:
    """A mention as a noun phrase: "a large striped red circle in the top left"."""
    words = [said[field] for field in ("size", "texture", "colour") if field in said]
    phrase = _with_article([*words, said.get("shape", "shape")], rng)
    if "place" not in said:
        return phrase
    return f"{phrase} {_choose(rng, ('in', 'at'))} the {said['place']}"


def _with_article(words: Sequence[str], rng: np.random.Generator) -> str:
    phrase = " ".join(words)
    article = "an" if phrase[0] in "aeiou" else "a"
    return _choose(rng, (f"{article} {phrase}", f"{article} {phrase}", f"one {phrase}", phrase))


def _phrases(objects: Sequence[SceneObject], rng: np.random.Generator) -> list[str]:
    """Each object in words, those of the same colour and shape together: "two red circles"."""
    groups: dict[Pair, list[SceneObject]] = {}
    for item in objects:
        groups.setdefault((item.colour, item.shape), []).append(item)
    return [
        in_words(mention(group[0], rng), rng)
        if len(group) == 1
        else f"{_NUMBERS[len(group)]} {colour} {_PLURALS[shape]}"
        for (colour, shape), group in groups.items()
    ]


def describe(scene: Scene, rng: np.random.Generator) -> str:
    """A caption that speaks of every object, mostly also of the background. Varied wording."""
    phrases = _phrases([scene.objects[i] for i in rng.permutation(len(scene.objects))], rng)
    text = " and ".join(part for part in (", ".join(phrases[:-1]), phrases[-1]) if part)
    background = scene.background
    return _choose(
        rng,
        (
            text,
            f"{text} on {background}",
            f"{text} on a {background} background",
            f"{text}, {background} background",
            f"on {background}: {text}",
            f"a picture of {text} on {background}",
        ),
    )
