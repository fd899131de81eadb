"""What applications feel of the host: swaps and deaths under load, the price of each way to ask, memory. One run, side
by side, on one machine; `make bench-host`.
"""
