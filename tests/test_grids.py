import numpy as np
from PIL import Image

from micdiffrep_jax.draw import grids


def test_to_uint8_undoes_the_scaling_of_the_input():
  every = np.arange(256, dtype=np.uint8)
  np.testing.assert_array_equal(grids.to_uint8(every / 127.5 - 1), every)
  assert grids.to_uint8(np.array([-3.0, 3.0])).tolist() == [0, 255]


def test_a_grid_holds_each_image_at_its_place():
  images = np.random.default_rng(0).integers(0, 200, (5, 4, 6, 1), np.uint8)
  grid = grids.make_grid(images, columns=3)
  assert grid.shape == (4 + 2 + 4, 3 * 6 + 2 * 2, 1)
  np.testing.assert_array_equal(grid[6:10, 8:14], images[4])
  assert (grid[6:10, 16:] == 255).all()  # the empty place is white
  assert grids.make_grid(images[:4]).shape == (10, 14, 1)


def test_a_figure_repeats_its_rows_for_what_does_not_fit():
  colour = np.array([10, 200, 30], np.uint8)  # not one that text has
  images = np.broadcast_to(colour, (5, 96, 96, 3))
  figure = grids.figure([('a', images), ('b', images)], columns=3)
  shown = (figure == colour).all(-1).sum()
  assert shown == 2 * 5 * 96 * 96
  narrow = grids.figure([('a', images[:1])])
  assert grids.stack([figure, narrow]).shape[1] == figure.shape[1]


def test_small_images_are_enlarged_by_whole_factors():
  image = np.zeros((1, 32, 32, 1), np.uint8)
  assert (grids.figure([('a', image)]) == 0).all(-1).sum() >= 96 * 96


def test_png_files_give_the_pixels_back(tmp_path):
  rng = np.random.default_rng(0)
  for c in (1, 3):
    image = rng.integers(0, 256, (5, 7, c), np.uint8)
    grids.save_png(str(tmp_path / 'x.png'), image)
    back = np.asarray(Image.open(tmp_path / 'x.png')).reshape(image.shape)
    np.testing.assert_array_equal(back, image)


def test_grey_colours_are_stored_as_one_channel(tmp_path):
  grey = np.random.default_rng(0).integers(0, 256, (5, 7, 1), np.uint8)
  grids.save_png(str(tmp_path / 'x.png'), np.repeat(grey, 3, axis=2))
  picture = Image.open(tmp_path / 'x.png')
  assert picture.mode == 'L'
  np.testing.assert_array_equal(np.asarray(picture), grey[..., 0])
