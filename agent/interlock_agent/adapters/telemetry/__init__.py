"""Where facts about the device come from: one file for each source, each optional; `hardware.py` joins them."""
