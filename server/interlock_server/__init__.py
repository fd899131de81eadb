"""What runs on the fleet host: publishing, rollouts, the link to the devices."""

__version__ = "0.1.0"
