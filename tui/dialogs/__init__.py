"""What is asked before an act that cannot be undone, and the pages that are read and closed."""
