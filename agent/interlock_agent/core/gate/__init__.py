"""The gate's judgements: figures in, check results out. Measuring is the caller's; nothing here waits."""
