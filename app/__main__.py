"""`python -m app` is the command `innerloop`."""

from app.cli import main

main()
