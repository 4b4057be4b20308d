"""The mathematics, in torch only: tasks, networks, heads, losses, the inner loop, meta-objectives."""
