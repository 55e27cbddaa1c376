"""Pictures of many pictures, as uint8 arrays and PNG files.

Dimension letters: n images, h w pixels, c channels (1 or 3).
"""

from collections.abc import Sequence
import io

from etils import epath
import numpy as np
from PIL import Image, ImageDraw, ImageFont

GAP_PX = 2
TEXT_PX = 12
LABEL_PX = 90  # At least, so that stacked figures are aligned.
SHOWN_PX = 96  # Smaller images are enlarged, by whole factors, to about this.


def to_uint8(images: np.ndarray) -> np.ndarray:
  """Float images in [-1, 1] -> uint8, rounded; what lies outside is cut."""
  images = np.clip(np.asarray(images, np.float32), -1, 1)
  return np.round((images + 1) * 127.5).astype(np.uint8)


def make_grid(images: np.ndarray, columns: int = 0) -> np.ndarray:
  """Images (n, h, w, c) uint8, row by row -> one (H, W, c), gaps white.

  columns: 0 makes it about square.
  """
  n, h, w, c = images.shape
  columns = min(n, columns or int(np.ceil(np.sqrt(n))))
  rows = -(-n // columns)
  cells = np.full((rows * columns, h + GAP_PX, w + GAP_PX, c), 255, np.uint8)
  cells[:n, :h, :w] = images
  cells = cells.reshape(rows, columns, h + GAP_PX, w + GAP_PX, c)
  grid = cells.transpose(0, 2, 1, 3, 4).reshape(
    rows * (h + GAP_PX), columns * (w + GAP_PX), c
  )
  return grid[:-GAP_PX, :-GAP_PX]


def _rgb(images: np.ndarray) -> np.ndarray:
  """(n, h, w, 1 or 3) -> (n, h', w', 3), small images enlarged."""
  if images.shape[-1] not in (1, 3):
    # Other channel counts have no colours; the first one is shown.
    images = images[..., :1]
  factor = max(1, SHOWN_PX // images.shape[1])
  images = images.repeat(factor, axis=1).repeat(factor, axis=2)
  return np.broadcast_to(images, (*images.shape[:3], 3))


def figure(
  rows: Sequence[tuple[str, np.ndarray]],
  captions: Sequence[Sequence[str]] | None = None,
  columns: int = 0,
) -> np.ndarray:
  """Rows of images with a label at the left -> (H, W, 3) uint8.

  rows: (label, images (n, h, w, c) uint8), all with the same n, size and c.
  captions: per row n short texts, written under the images. Where n is over
  `columns` (0: never), the set of rows is repeated below for the images left.
  """
  n = len(rows[0][1])
  columns = min(n, columns or n)
  shown = [_rgb(images) for _, images in rows]
  h, w = shown[0].shape[1:3]
  left = max(LABEL_PX, 8 + 6 * max(len(label) for label, _ in rows))
  under = TEXT_PX + 2 if captions else 0
  blocks = -(-n // columns)
  cell_h, cell_w = h + under + GAP_PX, w + GAP_PX
  height = blocks * (len(rows) * cell_h + 3 * GAP_PX)
  canvas = np.full((height, left + columns * cell_w, 3), 255, np.uint8)
  texts = []
  y = 0
  for start in range(0, n, columns):
    for r, (label, _) in enumerate(rows):
      texts.append((2, y + h // 2 - TEXT_PX // 2, label))
      for i in range(start, min(n, start + columns)):
        x = left + (i - start) * cell_w
        canvas[y : y + h, x : x + w] = shown[r][i]
        if captions:
          texts.append((x, y + h, captions[r][i]))
      y += cell_h
    y += 3 * GAP_PX
  picture = Image.fromarray(canvas)
  font = ImageFont.load_default(TEXT_PX - 1)
  for x, y, text in texts:
    ImageDraw.Draw(picture).text((x, y), text, fill=(0, 0, 0), font=font)
  return np.asarray(picture)


def stack(figures: Sequence[np.ndarray]) -> np.ndarray:
  """Figures (H_i, W_i, 3) one above the other, the narrower filled up white."""
  width = max(f.shape[1] for f in figures)
  return np.concatenate(
    [
      np.pad(f, ((0, 0), (0, width - f.shape[1]), (0, 0)), constant_values=255)
      for f in figures
    ]
  )


def save_png(path: str, image: np.ndarray) -> None:
  """Writes (h, w, c) uint8; of other than 1 or 3 channels the first.

  Colours that are all grey are one channel: half the file.
  """
  if image.shape[-1] != 3 or (image == image[..., :1]).all():
    image = image[..., 0]
  buffer = io.BytesIO()
  Image.fromarray(np.ascontiguousarray(image)).save(buffer, 'PNG')
  epath.Path(path).write_bytes(buffer.getvalue())
