import numpy as np

from micdiffrep_jax.data import groups


def test_join_unites_units_over_chains_of_pairs():
  units = ['a', 'a', 'b', 'c', 'd', 'e']
  joined = groups.join(units, np.array([[1, 2], [3, 2]]))
  # a, b, c hang together; d and e stand alone; numbers in order of appearance
  np.testing.assert_array_equal(joined, [0, 0, 0, 0, 1, 2])
  np.testing.assert_array_equal(
    groups.join(units, np.zeros((0, 2), int)), [0, 0, 1, 2, 3, 4]
  )


def test_rows_of_one_name_are_chained_and_no_name_joins_nothing():
  pairs = groups.same_name(['p', '', 'q', 'p', '', 'p'])
  assert {tuple(sorted(x)) for x in pairs.tolist()} == {(0, 3), (3, 5)}
  assert groups.same_name(['', '']).shape == (0, 2)
