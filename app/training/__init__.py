"""The offline job that makes θ: recipe, outer loop, checkpoints, evaluation."""
