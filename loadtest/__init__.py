"""The load tester and the simulated Spark. `engine`, `office`, `simulate` and `records` are pure."""
