"""The verbs of the command line, a file per topic."""
