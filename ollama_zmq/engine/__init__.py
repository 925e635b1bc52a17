"""What is generated: sequences, KV pages, the scheduler and the sampler. Pure: no sockets, clocks or threads."""
