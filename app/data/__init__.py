"""Task distributions: where the examples of few-shot tasks come from."""
