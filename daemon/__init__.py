"""The always-on process: ties the rooms together, serves the API, keeps intent and history."""
