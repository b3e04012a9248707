"""What every room stands on: durable files, config, locks, pipes, heartbeats, meters."""
