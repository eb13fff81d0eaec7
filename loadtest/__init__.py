"""The load tester, the simulated Spark, and the command line. `docs/architecture.md` has the rooms."""
