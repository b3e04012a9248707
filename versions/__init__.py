"""Owner of every committed checkpoint and version: list, verify, restore, retention, deletion."""
