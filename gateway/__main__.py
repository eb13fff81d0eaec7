"""`python -m gateway`: the gateway's own commands, without the load tester's."""

from gateway.cli.main import main

main()
