"""What is decided about workers: placement, the coordinator, the worker. Sans-IO: events in, effects out."""
