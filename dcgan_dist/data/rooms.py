"""Procedural bedrooms: image i is a pure function of (seed, i), and its attributes are known.

They need no download, and are a ground truth for what a network has learned about rooms (windows, turning the view,
adding attributes). A room is a box with a bed at its back wall, seen in perspective by a camera to its left or right.
The scene is drawn at a multiple of the size and averaged down. Lengths are whole centimetres, angles and lights come
from tables and integer arithmetic, and the random draws are a hash of (seed, i), so that every machine draws the same
bytes.
"""

from __future__ import annotations

import colorsys
import hashlib
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from dcgan_dist.data.images import Pixels

Colour = tuple[int, int, int]
Point = tuple[int, int, int]

# Increased with every change of the drawn images: shards of another version are other shards.
VERSION = 1
VIEWS = ("left", "right")

WALL_HUES = (10, 30, 45, 60, 95, 150, 190, 215, 250, 330)
BED_COLOURS: dict[str, Colour] = {
    "red": (178, 44, 48),
    "orange": (214, 124, 50),
    "yellow": (220, 188, 84),
    "green": (72, 132, 84),
    "blue": (54, 92, 168),
    "purple": (118, 74, 146),
    "white": (232, 230, 226),
    "grey": (128, 132, 140),
}
_WOODS: tuple[Colour, ...] = ((110, 72, 44), (146, 100, 62), (84, 56, 42), (178, 138, 96), (60, 46, 42))
_FLOORS: tuple[Colour, ...] = ((150, 112, 78), (112, 80, 56), (178, 146, 110), (132, 124, 118), (92, 66, 50))
_RUGS: tuple[Colour, ...] = ((160, 70, 60), (70, 90, 130), (200, 186, 158), (96, 110, 84), (120, 84, 120))
_SKIES: tuple[tuple[Colour, Colour], ...] = (
    ((170, 208, 244), (226, 240, 250)),  # day
    ((236, 240, 246), (250, 250, 248)),  # bright haze
    ((246, 190, 140), (252, 226, 178)),  # evening
    ((30, 40, 78), (58, 70, 112)),  # night
)
_NIGHT = 3
WIDTH, HEIGHT, DEPTH = 400, 255, 420  # of a room in cm
_NEAR = 20  # cm in front of the camera: the near clipping plane


class _Dice:
    """Random draws of one room: successive words of a hash of (seed, index)."""

    def __init__(self, seed: int, index: int) -> None:
        self._words = np.frombuffer(hashlib.shake_128(f"room {seed} {index}".encode()).digest(256), "<u4").tolist()

    def between(self, low: int, high: int) -> int:
        """Return a whole number in [low, high]."""
        return low + int(self._words.pop()) % (high - low + 1)

    def chance(self, percent: int) -> bool:
        return self.between(0, 99) < percent


def room_attributes(seed: int, index: int) -> dict[str, Any]:
    """Return the attributes of room `index`, except the pixel box of its window, which depends on the size.

    Keys: `view` (`left` or `right`: the side of the camera), `angle` (of the camera, in degrees), `window` (present),
    `bed_colour` (a key of `BED_COLOURS`), `wall_hue` (degrees), `lamp_on`, `night`, `rug`, `picture`.
    """
    dice = _Dice(seed, index)
    view = VIEWS[dice.between(0, 1)]
    return {
        "view": view,
        "angle": dice.between(8, 22),
        "window": dice.chance(60),
        "bed_colour": tuple(BED_COLOURS)[dice.between(0, len(BED_COLOURS) - 1)],
        "wall_hue": WALL_HUES[dice.between(0, len(WALL_HUES) - 1)],
        "lamp_on": dice.chance(50),
        "night": dice.chance(20),
        "rug": dice.chance(55),
        "picture": dice.chance(45),
    }


class _Camera:
    """Projects centimetres (x right, y up, z away from the viewer) to pixels of the canvas."""

    def __init__(self, x: int, y: int, degrees: int, turn: int, side: int) -> None:
        self.x, self.y = x, y
        # Rounded to 1/1024, since the last bits of a sine differ between machines.
        self.sine = turn * round(1024 * math.sin(math.radians(degrees)))
        self.cosine = round(1024 * math.cos(math.radians(degrees)))
        self.side = side

    def __call__(self, points: Sequence[Point]) -> list[tuple[int, int]]:
        """Return the corners of a polygon on the canvas, clipped at the near plane."""
        sine, cosine, x, y = self.sine, self.cosine, self.x, self.y
        turned, is_near = [], False
        for px, py, pz in points:
            depth = ((px - x) * sine + pz * cosine) >> 10
            turned.append((((px - x) * cosine - pz * sine) >> 10, py - y, depth))
            if depth < _NEAR:
                is_near = True
        if is_near:
            turned = _cut(turned)
        # The horizon is above the middle, to show bed and floor (a shifted lens keeps vertical lines vertical).
        side, centre, horizon = self.side, self.side // 2, self.side * 36 // 100
        return [(centre + side * px // pz, horizon - side * py // pz) for px, py, pz in turned]


def _cut(corners: list[Point]) -> list[Point]:
    """Return a polygon in the camera's coordinates, clipped at the near plane."""
    kept: list[Point] = []
    for (ax, ay, az), (bx, by, bz) in zip(corners, corners[1:] + corners[:1], strict=True):
        if az >= _NEAR:
            kept.append((ax, ay, az))
        if (az >= _NEAR) != (bz >= _NEAR):
            part, whole = _NEAR - az, bz - az
            kept.append((ax + (bx - ax) * part // whole, ay + (by - ay) * part // whole, _NEAR))
    return kept


def _mix(colour: Colour, other: Colour, percent: int) -> Colour:
    """Return `colour` with `percent` of `other`."""
    (r, g, b), (other_r, other_g, other_b), rest = colour, other, 100 - percent
    return (
        (r * rest + other_r * percent) // 100,
        (g * rest + other_g * percent) // 100,
        (b * rest + other_b * percent) // 100,
    )


def _shade(colour: Colour, percent: int) -> Colour:
    """Return `percent` of the brightness of `colour`."""
    r, g, b = colour
    return min(255, r * percent // 100), min(255, g * percent // 100), min(255, b * percent // 100)


@lru_cache
def _wall_colour(hue: int, saturation: int, value: int) -> Colour:
    r, g, b = (round(255 * part) for part in colorsys.hsv_to_rgb(hue / 360, saturation / 100, value / 100))
    return r, g, b


@lru_cache
def _squares(size: int, centre: int) -> npt.NDArray[np.int32]:
    """Return the squared distances of a row's pixels from `centre`, in units of (1 / 64 of the size)**2."""
    distance = (np.arange(size, dtype=np.int32) * 64 + 32) // size - centre
    return distance * distance


class _Scene:
    """The drawing of one room: flat polygons, far ones first."""

    def __init__(self, camera: _Camera) -> None:
        self.camera = camera
        self.image = Image.new("RGB", (camera.side, camera.side))
        self._draw = ImageDraw.Draw(self.image)

    def polygon(self, colour: Colour, *points: Point) -> list[tuple[int, int]]:
        corners = self.camera(points)
        if len(corners) > 2:
            self._draw.polygon(corners, fill=colour)
        return corners

    def box(self, colour: Colour, low: Point, high: Point) -> None:
        """Draw the visible faces of a box: top, front, and the side towards the camera."""
        (x0, y0, z0), (x1, y1, z1) = low, high
        if self.camera.x < x0:
            self.polygon(_shade(colour, 72), (x0, y0, z0), (x0, y1, z0), (x0, y1, z1), (x0, y0, z1))
        elif self.camera.x > x1:
            self.polygon(_shade(colour, 72), (x1, y0, z0), (x1, y1, z0), (x1, y1, z1), (x1, y0, z1))
        if self.camera.y > y1:
            self.polygon(colour, (x0, y1, z0), (x1, y1, z0), (x1, y1, z1), (x0, y1, z1))
        self.polygon(_shade(colour, 84), (x0, y0, z0), (x1, y0, z0), (x1, y1, z0), (x0, y1, z0))

    def shows_panel(self, wall: str, low: tuple[int, int], high: tuple[int, int]) -> bool:
        """Return whether a rectangle on a wall is completely on the canvas."""
        inside = range(self.camera.side)
        return all(u in inside and v in inside for u, v in self.camera(_on_wall(wall, low, high)))

    def panel(self, colour: Colour, wall: str, low: tuple[int, int], high: tuple[int, int]) -> list[tuple[int, int]]:
        """Draw an upright rectangle on the `back`, `left` or `right` wall, from `low` to `high` along and up it."""
        return self.polygon(colour, *_on_wall(wall, low, high))


def _on_wall(wall: str, low: tuple[int, int], high: tuple[int, int]) -> list[Point]:
    (a0, y0), (a1, y1) = low, high
    corners = ((a0, y0), (a1, y0), (a1, y1), (a0, y1))
    if wall == "back":
        return [(a, y, DEPTH - 1) for a, y in corners]
    x = 1 if wall == "left" else WIDTH - 1
    return [(x, y, a) for a, y in corners]


def draw_room(seed: int, index: int, size: int = 64) -> tuple[Pixels, dict[str, Any]]:
    """Draw room `index` of the rooms of `seed`.

    Returns:
        The image, uint8 of shape (size, size, 3), and its attributes: those of `room_attributes`, and `window_box`,
        the window's [left, top, right, bottom] in pixels (right and bottom exclusive), None if there is none.
    """
    attributes = room_attributes(seed, index)
    # A second stream of draws for everything that is not an attribute.
    dice = _Dice(seed, -1 - index)
    is_left = attributes["view"] == "left"
    night, lamp_on = attributes["night"], attributes["lamp_on"]
    factor = 4 if size <= 32 else 2
    camera_x = dice.between(60, 130)
    camera = _Camera(
        camera_x if is_left else WIDTH - camera_x,
        dice.between(140, 175),
        attributes["angle"],
        1 if is_left else -1,
        size * factor,
    )
    scene = _Scene(camera)

    wall = _wall_colour(attributes["wall_hue"], dice.between(10, 42), dice.between(72, 92))
    floor = _FLOORS[dice.between(0, len(_FLOORS) - 1)]
    wood = _WOODS[dice.between(0, len(_WOODS) - 1)]
    _draw_shell(scene, wall, floor)

    bed_width = dice.between(130, 180)
    bed_x = dice.between(100, 300 - bed_width)
    bed_front = DEPTH - dice.between(185, 215)
    lamp_left = (bed_x > WIDTH - bed_x - bed_width) if dice.chance(70) else is_left
    lamp_x = bed_x - 32 if lamp_left else bed_x + bed_width + 32

    window_box, taken = None, range(0)
    position = ("back", "side", "above")[dice.between(0, 2)]
    if attributes["window"]:
        corners, taken = _draw_window(scene, dice, position, lamp_left, (bed_x, bed_width), night, wall)
        window_box = _bounds(corners, camera.side, factor)
    if attributes["picture"]:
        _draw_picture(scene, dice, bed_x + bed_width // 2, taken, wood)
    if attributes["rug"]:
        rug = _RUGS[dice.between(0, len(_RUGS) - 1)]
        out = dice.between(25, 60)
        x0, x1, z0 = bed_x - out, bed_x + bed_width + out, bed_front - dice.between(40, 90)
        scene.polygon(rug, (x0, 0, z0), (x1, 0, z0), (x1, 0, DEPTH - 60), (x0, 0, DEPTH - 60))
        inner = _mix(rug, (255, 255, 255), 30)
        scene.polygon(inner, *((x, 0, z) for x, z in _inset(x0 + 12, x1 - 12, z0 + 12, DEPTH - 70)))
        scene.polygon(rug, *((x, 0, z) for x, z in _inset(x0 + 18, x1 - 18, z0 + 18, DEPTH - 76)))

    lamp_at = _draw_lamp(scene, dice, lamp_x, wood, lamp_on)
    _draw_bed(scene, dice, BED_COLOURS[attributes["bed_colour"]], wood, (bed_x, bed_width, bed_front))

    image = np.asarray(scene.image.reduce(factor)).astype(np.int32)
    lights = _light(size, lamp_at, camera.side, window_box, night=night, lamp_on=lamp_on, level=dice.between(92, 108))
    noise = hashlib.shake_128(f"grain {seed} {index}".encode()).digest(size * size)
    grain = np.frombuffer(noise, np.uint8).reshape(size, size, 1).astype(np.int32) >> 5
    image = ((image * lights) >> 8) + grain - 4
    attributes["window_box"] = window_box
    return np.clip(image, 0, 255).astype(np.uint8), attributes


def _inset(x0: int, x1: int, z0: int, z1: int) -> tuple[tuple[int, int], ...]:
    return ((x0, z0), (x1, z0), (x1, z1), (x0, z1))


def _draw_shell(scene: _Scene, wall: Colour, floor: Colour) -> None:
    back, near = DEPTH, -80
    ceiling = _mix(wall, (250, 248, 244), 75)
    scene.polygon(ceiling, (0, HEIGHT, near), (WIDTH, HEIGHT, near), (WIDTH, HEIGHT, back), (0, HEIGHT, back))
    scene.polygon(floor, (0, 0, near), (WIDTH, 0, near), (WIDTH, 0, back), (0, 0, back))
    plank = _shade(floor, 88)
    for x in range(0, WIDTH, 80):
        scene.polygon(plank, (x, 0, near), (x + 40, 0, near), (x + 40, 0, back), (x, 0, back))
    scene.polygon(_shade(wall, 84), (0, 0, near), (0, HEIGHT, near), (0, HEIGHT, back), (0, 0, back))
    scene.polygon(_shade(wall, 90), (WIDTH, 0, near), (WIDTH, HEIGHT, near), (WIDTH, HEIGHT, back), (WIDTH, 0, back))
    scene.polygon(wall, (0, 0, back), (WIDTH, 0, back), (WIDTH, HEIGHT, back), (0, HEIGHT, back))
    skirting = _mix(wall, (244, 242, 238), 70)
    scene.panel(skirting, "back", (0, 0), (WIDTH, 10))
    scene.panel(_shade(skirting, 88), "left", (near, 0), (back, 10))
    scene.panel(_shade(skirting, 92), "right", (near, 0), (back, 10))


def _draw_window(
    scene: _Scene,
    dice: _Dice,
    position: str,
    lamp_left: bool,
    bed: tuple[int, int],
    night: bool,
    wall: Colour,
) -> tuple[list[tuple[int, int]], range]:
    """Draw a window with its frame and curtains.

    Returns:
        The corners of its glass on the canvas, and the range of the back wall that it occupies.
    """
    bed_x, bed_width = bed
    width, bottom, top = dice.between(75, 105), dice.between(108, 120), dice.between(195, 225)
    above = ("back", bed_x + (bed_width - width) // 2)
    if position == "back":
        on, start = "back", (dice.between(14, 34) if not lamp_left else WIDTH - width - dice.between(14, 34))
    elif position == "side":
        on, start = ("left", "right")[dice.between(0, 1)], dice.between(220, 300)
    else:
        on, start = above
    if not scene.shows_panel(on, (start, bottom), (start + width, top)):
        on, start = above
    stop = start + width
    frame = _mix(wall, (252, 250, 246), 85)
    upper, lower = _SKIES[_NIGHT] if night else _SKIES[dice.between(0, _NIGHT - 1)]
    scene.panel(frame, on, (start - 6, bottom - 8), (stop + 6, top + 6))
    corners = scene.panel(upper, on, (start, bottom), (stop, top))
    height = top - bottom
    for part in range(1, 5):
        scene.panel(_mix(upper, lower, 25 * part), on, (start, bottom), (stop, top - height * part // 5))
    hill = (26, 34, 44) if night else (108, 140, 96)
    if dice.chance(60):
        scene.panel(hill, on, (start, bottom), (stop, bottom + height * dice.between(15, 35) // 100))
    middle = (start + stop) // 2
    scene.panel(frame, on, (middle - 2, bottom), (middle + 2, top))
    if dice.chance(50):
        scene.panel(frame, on, (start, bottom + height * 62 // 100), (stop, bottom + height * 66 // 100))
    if dice.chance(60):
        cloth = _wall_colour(WALL_HUES[dice.between(0, len(WALL_HUES) - 1)], dice.between(15, 50), dice.between(60, 95))
        drop = bottom - dice.between(15, 60)
        for edge, inward in ((start, 1), (stop, -1)):
            for fold, tone in ((-14, 92), (-7, 78), (0, 96)):
                near, far = sorted((edge + inward * fold, edge + inward * (fold + 8)))
                scene.panel(_shade(cloth, tone), on, (near, drop), (far, top + 8))
    return corners, range(start - 14, stop + 14) if on == "back" else range(0)


def _draw_picture(scene: _Scene, dice: _Dice, over_bed: int, taken: range, wood: Colour) -> None:
    """Draw a framed picture on the back wall: over the bed or, if a window is there, to the side of it."""
    width, height, middle = dice.between(20, 34), dice.between(16, 26), dice.between(160, 180)
    on, centre = "back", over_bed
    for at in (over_bed, over_bed + 95, over_bed - 95):
        is_free = at - width not in taken and at not in taken and at + width not in taken
        if is_free and scene.shows_panel(on, (at - width, middle - height), (at + width, middle + height)):
            centre = at
            break
    scene.panel(_shade(wood, 80), on, (centre - width, middle - height), (centre + width, middle + height))
    low, high = (centre - width + 4, middle - height + 4), (centre + width - 4, middle + height - 4)
    scene.panel((226, 220, 206), on, low, high)
    spot = _RUGS[dice.between(0, len(_RUGS) - 1)]
    scene.panel(spot, on, (centre - width // 2, middle - height // 2), (centre + width // 2, middle + height // 3))


def _draw_lamp(scene: _Scene, dice: _Dice, x: int, wood: Colour, lamp_on: bool) -> tuple[int, int]:
    """Draw a night table with a lamp on it; return the position of the lamp's shade on the canvas."""
    z0, z1, top = DEPTH - 46, DEPTH - 4, dice.between(44, 56)
    scene.box(wood, (x - 22, 6, z0), (x + 22, top, z1))
    scene.polygon(
        _shade(wood, 60), (x - 18, top - 14, z0), (x + 18, top - 14, z0), (x + 18, top - 11, z0), (x - 18, top - 11, z0)
    )
    z, foot = (z0 + z1) // 2, top + dice.between(12, 20)
    scene.polygon((92, 84, 76), (x - 3, top, z), (x + 3, top, z), (x + 3, foot, z), (x - 3, foot, z))
    shade_colour = (255, 244, 196) if lamp_on else (176, 166, 148)
    high, wide = foot + dice.between(24, 32), dice.between(15, 20)
    corners = scene.polygon(
        shade_colour,
        (x - wide, foot, z),
        (x + wide, foot, z),
        (x + wide * 2 // 3, high, z),
        (x - wide * 2 // 3, high, z),
    )
    return sum(u for u, _ in corners) // 4, sum(v for _, v in corners) // 4


def _draw_bed(scene: _Scene, dice: _Dice, colour: Colour, wood: Colour, position: tuple[int, int, int]) -> None:
    x0, width, front = position
    x1, back, top = x0 + width, DEPTH, dice.between(46, 58)
    head = dice.between(84, 104)
    scene.box(_shade(wood, 95), (x0 - 4, 0, back - 8), (x1 + 4, head, back - 1))
    if dice.chance(50):
        panel = ((x0 + 8, top), (x1 - 8, top), (x1 - 8, head - 10), (x0 + 8, head - 10))
        scene.polygon(_shade(wood, 115), *((x, y, back - 9) for x, y in panel))
    scene.box(wood, (x0, 6, front), (x1, 26, back - 9))
    scene.box((236, 232, 224), (x0 + 2, 26, front + 3), (x1 - 2, top, back - 9))
    fold = back - dice.between(85, 110)
    scene.box(colour, (x0 - 3, dice.between(14, 30), front - 2), (x1 + 3, top + 4, fold))
    rim = _mix(colour, (255, 255, 255), 45)
    scene.polygon(
        rim,
        (x0 - 3, top + 5, fold - 22),
        (x1 + 3, top + 5, fold - 22),
        (x1 + 3, top + 5, fold),
        (x0 - 3, top + 5, fold),
    )
    if dice.chance(20):  # a second cloth over the foot of the bed
        cloth = _RUGS[dice.between(0, len(_RUGS) - 1)]
        end = front + dice.between(35, 60)
        scene.box(cloth, (x0 - 4, top - 20, front - 3), (x1 + 4, top + 6, end))
    pillow = _mix((246, 244, 240), colour, 35 if dice.chance(35) else 0)
    half = width // 2
    for left in (x0 + 6, x0 + half + 4):
        right = left + half - 12
        scene.box(pillow, (left, top, back - 58), (right, top + 12, back - 24))
        scene.box(_shade(pillow, 96), (left + 5, top + 12, back - 48), (right - 5, top + 20, back - 20))


def _bounds(corners: Sequence[tuple[int, int]], side: int, factor: int) -> list[int] | None:
    """Return [left, top, right, bottom] in pixels of the corners' bounding box inside the canvas."""
    us, vs = [u for u, _ in corners], [v for _, v in corners]
    left, top, right, bottom = max(0, min(us)), max(0, min(vs)), min(side, max(us)), min(side, max(vs))
    if left >= right or top >= bottom:
        return None
    return [left // factor, top // factor, -(-right // factor), -(-bottom // factor)]


def _light(
    size: int, lamp_at: tuple[int, int], side: int, window: list[int] | None, *, night: bool, lamp_on: bool, level: int
) -> npt.NDArray[np.int32]:
    """Return the brightness of each pixel and channel in 1/256, shape (size, size, 3)."""
    corner = _squares(size, 32)
    base = (150 if night else 246) * level // 100
    light = base - (corner[:, None] + corner[None, :]) // 32
    if window is not None and not night:
        u, v = (window[0] + window[2]) * 32 // size, (window[1] + window[3]) * 32 // size
        light += np.maximum(0, 1500 - _squares(size, v + 10)[:, None] - _squares(size, u)[None, :]) // 32
    warm = np.repeat(light[:, :, None], 3, axis=2)
    if night:
        warm[:, :, 2] += 14
    if lamp_on:
        u, v = (64 * at // side for at in lamp_at)
        glow = np.maximum(0, 1600 - _squares(size, v)[:, None] - _squares(size, u)[None, :])
        glow = glow * glow // (20000 if night else 36000)
        warm[:, :, 0] += glow
        warm[:, :, 1] += glow * 7 // 8
        warm[:, :, 2] += glow * 5 // 8
    return warm
