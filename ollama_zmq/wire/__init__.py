"""Messages and frames: what crosses the bus. No sockets, no clocks."""
