"""Work of a traced function: its products and convolutions, two FLOPs a term.

XLA's own count sees nothing of a library's kernels, and they do it on a GPU.
"""

from typing import Any

from jax.interpreters import partial_eval
import numpy as np


def _dot(equation: Any) -> int:
  (contracted, _), _ = equation.params['dimension_numbers']
  left = equation.invars[0].aval.shape
  terms = np.prod([left[i] for i in contracted], dtype=np.int64)
  return 2 * int(terms) * equation.outvars[0].aval.size


def _convolution(equation: Any) -> int:
  """As if no image had a border: terms with its padding count too."""
  numbers = equation.params['dimension_numbers']
  kernel = equation.invars[1].aval.shape
  # Of the kernel all but the channels that lead out.
  terms = np.prod(kernel, dtype=np.int64) // kernel[numbers.rhs_spec[0]]
  # Where zeros stand between the pixels of the image, only the pixels count.
  holes = np.prod(equation.params['lhs_dilation'], dtype=np.int64)
  return 2 * int(terms) * equation.outvars[0].aval.size // int(holes)


def _inner(value: Any) -> list[Any]:
  if isinstance(value, tuple | list):
    return [found for x in value for found in _inner(x)]
  value = getattr(value, 'jaxpr', value)
  return [value] if hasattr(value, 'eqns') else []


def of(jaxpr: Any) -> int:
  """FLOPs of a jaxpr, without what no result needs: a compiler drops that.

  Of a loop with unknown end those of one pass.
  """
  jaxpr = getattr(jaxpr, 'jaxpr', jaxpr)
  jaxpr, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
  total = 0
  for equation in jaxpr.eqns:
    name = equation.primitive.name
    if name == 'dot_general':
      total += _dot(equation)
    elif name == 'conv_general_dilated':
      total += _convolution(equation)
    inside = [of(x) for v in equation.params.values() for x in _inner(v)]
    if name == 'cond':  # one of the branches
      total += max(inside)
    else:
      total += sum(inside) * (
        equation.params['length'] if name == 'scan' else 1
      )
  return total
