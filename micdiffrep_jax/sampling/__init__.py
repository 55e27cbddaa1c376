"""From noise to images and back: plans of steps and the loops over them."""
