"""The mathematics, in torch only: networks, heads, losses, the inner loop, meta-objectives."""
