"""What is decided about workers: placement, the coordinator, the worker. Pure: events in, effects out."""
