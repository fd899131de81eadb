"""`make bench-gate`: how often the gate's judgement of speed is right, on this machine, under load.

Two halves. *Record* measures pairs of blocks for candidates of known cost, by the shipped code, under three loads, and
keeps the raw samples. *Judge* gives thousands of verdicts on them by the shipped rules, and by what people use today.
Live verdicts of the whole stage say whether the traces tell the truth.
"""
