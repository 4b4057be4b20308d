"""Innerloop: personal models from a handful of labelled examples, adapted per request."""

from importlib.metadata import version

__version__ = version("innerloop")
