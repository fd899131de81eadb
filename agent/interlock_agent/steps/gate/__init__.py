"""The gate's measuring: one file a stage, each `async def check(run, tried) -> [CheckResult]`. Judging is core.gate's.

Nothing here knows of phases, journals or slots: a `Run` is all that a stage needs, so that `interlock-agent gate`
judges a bundle that is not installed with the very same code.
"""
