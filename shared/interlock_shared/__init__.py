"""What both ends of Interlock agree on: no I/O (but the durable-replace helper), no clock."""

__version__ = "0.1.0"
