"""Every face a person touches: the screen and the `trainer-tui` command line."""
