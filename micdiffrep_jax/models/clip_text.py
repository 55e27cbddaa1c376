"""CLIP's text tower: a causal transformer, read at the end of the caption.

Source: Radford et al. 2021. Letters: b captions, l tokens, d features.
"""

from flax import linen as nn
import jax.numpy as jnp

from micdiffrep_jax.models.clip_vision import Block


class TextTransformer(nn.Module):
  """tokens (b, l) int32 in [0, vocabulary) -> (embedding (b, out), taps).

  The last id of the vocabulary ends a caption; what follows it is padding,
  which no earlier token sees. Taps: 'block<i>' (b, l, d) and 'pooled' (b, d),
  float32.
  """

  vocabulary: int
  length: int
  width: int
  depth: int
  heads: int
  out: int
  activation: str = 'quick_gelu'
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, tokens):
    d = self.width
    positions = self.param(
      'positions', nn.initializers.normal(0.01), (self.length, d)
    )
    x = nn.Embed(
      self.vocabulary,
      d,
      embedding_init=nn.initializers.normal(0.02),
      name='tokens',
    )(tokens)
    x = x + positions[None]
    taps = {}
    for i in range(self.depth):
      x = Block(
        self.heads, self.activation, True, self.dtype, name=f'block{i}'
      )(x)
      taps[f'block{i}'] = x
    x = nn.LayerNorm(epsilon=1e-5, name='post_norm')(x)
    end = jnp.argmax(tokens == self.vocabulary - 1, axis=1)
    pooled = jnp.take_along_axis(x, end[:, None, None], axis=1)[:, 0]
    taps['pooled'] = pooled
    embedding = nn.Dense(
      self.out,
      use_bias=False,
      kernel_init=nn.initializers.normal(d**-0.5),
      name='project',
    )(pooled)
    return embedding, taps
