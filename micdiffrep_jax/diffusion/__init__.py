"""The diffusion process, its samplers and inversion."""
