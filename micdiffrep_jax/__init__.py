"""Label-efficient classification of medical images from diffusion features."""
