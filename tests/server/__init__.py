"""The server, with real sockets, files and brokers on loopback."""
