"""The diffusion process, its samplers and inversion, as pure functions.

Clean or noised images and a network's raw outputs enter; noised images, targets
and samples leave. Any room above may import it; it knows no network, no data
set and no config.
"""
