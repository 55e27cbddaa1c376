"""The one table of heads, and the one place that tells their kinds apart.

A head that is trained by gradient is an entry of nets.HEADS, any other one of
classic.HEADS.
"""

from collections.abc import Sequence

from ml_collections import ConfigDict

from micdiffrep_jax.heads import classic, nets, trained
from micdiffrep_jax.heads.base import (
  Fitted,
  Head,
  HeadInfo,
  Params,
  Problem,
  Settings,
  head_of,
)

HEADS: dict[str, Head] = {
  name: head_of(net.apply, None, ('setting',), name)
  for name, net in nets.HEADS.items()
} | classic.HEADS


def name_of(info: HeadInfo) -> str:
  """The head that a file's info speaks of: its kind, or one that fits it.

  A logistic regression, for one, is saved as a linear head.
  """
  return next(
    name
    for name, head in HEADS.items()
    if head.kind == info.kind and set(head.chooses) <= set(info.settings)
  )


def refit(
  name: str,
  problem: Problem,
  params: Params,
  heads: ConfigDict,
  seeds: Sequence[int],
  chosen: Settings,
) -> tuple[Params, Params]:
  """A head fitted again on more rows, and `params` of before beside it.

  What the two share is one and the same array, so that a file holds it once.
  """
  again = HEADS[name].refit
  if again is not None:
    return again(problem, params, **chosen)
  (fitted,) = fit(name, problem, heads, seeds, chosen)
  return fitted.params, params


def fit(
  name: str,
  problem: Problem,
  heads: ConfigDict | None = None,
  seeds: Sequence[int] = (0,),
  chosen: Settings | None = None,
) -> list[Fitted]:
  """Heads of a kind, one per seed; those without a learning rate have no seed.

  chosen: settings by name; without them a head of no learning rate chooses its
  own. heads: config.heads, how those with a learning rate are trained.
  """
  head, given = HEADS[name], chosen or {}
  if head.fit is not None:
    tried = {setting: (value,) for setting, value in given.items()}
    return [head.fit(problem, **tried)]
  features, labels, classes, train, validation = problem
  assert heads is not None
  fits = trained.fit(
    [features],
    labels,
    classes,
    [trained.Cell(0, train, seed) for seed in seeds],
    [trained.Setting(**given['setting'])],
    validation,
    trained.options_of(heads, name),
    trained.class_weights(heads.balanced, labels[train], classes),
    keep_params=True,
    memory_mb=heads.memory_mb,
  )
  y = labels[validation]
  return [
    Fitted(
      one.params or {},
      given,
      float((one.logits[0].argmax(1) == y).mean()),
      logits=one.logits[0],
    )
    for one in fits
  ]
