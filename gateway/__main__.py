"""`python -m gateway` is `fairlane`."""

from gateway.cli import main

main()
