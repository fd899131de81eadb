"""What runs on the device: the agent decides, the host serves."""

__version__ = "0.1.0"
