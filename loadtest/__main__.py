"""`python -m loadtest` is `fairlane`."""

from loadtest.cli.main import main

main()
