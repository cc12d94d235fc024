"""Contact sheets: rows of thumbnails with captions, as one picture for people to look at."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field

from PIL import Image, ImageDraw, ImageFont, ImageOps

MARGIN = 12
INK = (30, 34, 40)
FAINT = (110, 118, 128)
PAPER = (255, 255, 255)

Font = ImageFont.ImageFont | ImageFont.FreeTypeFont


@dataclass(frozen=True)
class Thumbnail:
    """A picture and the words under it."""

    image: Image.Image
    caption: str = ""


@dataclass(frozen=True)
class Row:
    """A title and the thumbnails under it."""

    title: str
    thumbnails: Sequence[Thumbnail] = field(default_factory=list)


def contact_sheet(rows: Sequence[Row], side: int) -> Image.Image:
    """Rows of square thumbnails, `side` pixels each, as an RGB picture."""
    title_size, caption_size = max(12, side // 8), max(10, side // 12)
    title, caption = ImageFont.load_default(title_size), ImageFont.load_default(caption_size)
    heading = title_size + MARGIN
    row_height = heading + side + caption_size + 2 * MARGIN
    columns = max((len(row.thumbnails) for row in rows), default=0)
    width = MARGIN + columns * (side + MARGIN)
    sheet = Image.new("RGB", (width, MARGIN + row_height * len(rows)), PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, row in enumerate(rows):
        top = MARGIN + number * row_height
        draw.text((MARGIN, top), row.title, INK, title)
        for column, thumbnail in enumerate(row.thumbnails):
            left = MARGIN + column * (side + MARGIN)
            sheet.paste(
                ImageOps.pad(thumbnail.image, (side, side), color=PAPER), (left, top + heading)
            )
            words = _shortened(thumbnail.caption, caption, side)
            draw.text((left, top + heading + side + 4), words, FAINT, caption)
    return sheet


def inline_jpeg(sheet: Image.Image) -> str:
    """A Markdown picture with the sheet inside it, for pages that can load nothing else."""
    buffer = io.BytesIO()
    sheet.save(buffer, "JPEG", quality=70)
    return f"![images](data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()})"


def _shortened(words: str, font: Font, width: int) -> str:
    while font.getlength(words) > width:
        words = words.rstrip("…")[:-1] + "…"
    return words
