"""The published table, made again: recipes, θ, results and the report."""
