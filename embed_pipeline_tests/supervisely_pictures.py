"""Pictures of a stand-in Supervisely instance: previews, and a sample of drawn ones."""

from functools import lru_cache
from io import BytesIO
from itertools import product

from PIL import Image as Pillow
from PIL import ImageDraw, ImageOps

from embed_pipeline_tests.supervisely_instance import Instance

COLOURS = ("red", "green", "blue", "orange")
SHAPES = ("circle", "square", "triangle")


@lru_cache(256)
def shrunk(data: bytes, width: int, height: int, quality: int) -> bytes | None:
    """A JPEG upright within width x height (0: any), never enlarged; None where it is no picture."""
    try:
        picture = ImageOps.exif_transpose(Pillow.open(BytesIO(data)))
        picture.thumbnail((width or picture.width, height or picture.height))
        picture.convert("RGB").save(small := BytesIO(), "JPEG", quality=quality)
    except (OSError, ValueError, SyntaxError, Pillow.DecompressionBombError):
        return None
    return small.getvalue()


def drawn(colour: str, shape: str, size: int = 320) -> bytes:
    """A JPEG of a shape on white."""
    picture = Pillow.new("RGB", (size, size * 3 // 4), "white")
    pen = ImageDraw.Draw(picture)
    middle, radius = (size // 2, size * 3 // 8), size // 4
    if shape == "circle":
        pen.circle(middle, radius, fill=colour)
    else:
        sides = 4 if shape == "square" else 3
        pen.regular_polygon((middle, radius), sides, fill=colour)
    picture.save(file := BytesIO(), "JPEG", quality=90)
    return file.getvalue()


def make_sample(instance: Instance, projects: int) -> None:
    """A team with this many projects, AI search switched on, of two datasets, one in the other."""
    if not projects:
        return
    team = instance.add_team("sample")
    for number in range(1, projects + 1):
        project = instance.add_project(f"shapes {number}", team)
        outer = instance.add_dataset(project, "shapes")
        datasets = (outer, instance.add_dataset(project, "more", parent_id=outer))
        for place, (colour, shape) in enumerate(product(COLOURS, SHAPES)):
            data = drawn(colour, shape, 320 + 8 * number)
            instance.add_image(datasets[place % 2], f"{colour} {shape}.jpg", data)
