"""Sockets and the threads that own them. The only package that imports zmq; it decides nothing."""
